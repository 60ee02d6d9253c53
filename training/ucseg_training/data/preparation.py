"""A case of a data set to a sample, by the very preprocessing of the runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.intensity import apply_intensity, as_network_takes
from ucseg_runtime.manifest import Preprocessing
from ucseg_runtime.preprocess import Prepared, preprocess, resample_nearest
from ucseg_runtime.volume import Volume
from ucseg_training.data.case_list import TRAINING, CaseEntry
from ucseg_training.data.crops import cropped
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.label_grid import majority_labels
from ucseg_training.data.readers import read_case
from ucseg_training.data.sample import Sample
from ucseg_training.data.source import SourceCase


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A sample and where it came from.

    Attributes:
        sample: A picture as a plane, anything else as a volume, whatever the dimensions of the networks.
        pixel_digest: SHA-256 over shape and voxels of the source; equal for copies of one image.
    """

    sample: Sample
    pixel_digest: str


def prepare_case(entry: CaseEntry, spec: DatasetSpec) -> PreparedCase:
    """Read a case and bring it to the model grid and the network's input range.

    Training volumes are cut as the data set says, those without a label only where that needs none. Volumes to be
    scored are whole, as the deployed model sees them.

    Raises:
        InputError: The case cannot be used; the message names neither it nor its files.
    """
    source = read_case(entry, spec)
    sample = prepare_source(source, spec, entry.name, entry.patient)
    done = source.from_hdf5 and spec.hdf5 is not None and spec.hdf5.cropped
    if entry.split in TRAINING and not done:
        sample = cropped(sample, spec.crop, spec.seed)
    if spec.dim == 2 and sample.spatial_shape[0] == 1:
        sample = _as_plane(sample)
    return PreparedCase(sample, _pixel_digest(source))


def prepare_source(source: SourceCase, spec: DatasetSpec, name: str, patient: str) -> Sample:
    """Orient, resample and normalise; shape (channels, z, y, x), not cut."""
    channels = [_prepared(channel, source, spec) for channel in source.image.voxels]
    padding = np.concatenate([channel.padding for channel in channels])
    label_map = None if source.label_map is None else _label_on(channels[0], source.label_map, spec)
    return Sample(
        name=name,
        patient=patient,
        image=_as_network_takes(np.concatenate([channel.voxels for channel in channels]), spec),
        label_map=label_map,
        known=None,
        padding=_as_network_takes(padding, spec),
    )


def in_input_units(source: SourceCase, spec: DatasetSpec) -> Float32Array:
    """The image on its own grid in network input units: float32, shape (channels of the network, z, y, x)."""
    channels = source.image.voxels
    values = np.stack([apply_intensity(channel, _rule_for(channel, source, spec).intensity) for channel in channels])
    return _as_network_takes(values, spec)


def _as_network_takes(channels: Float32Array, spec: DatasetSpec) -> Float32Array:
    """Channels in the order of the network, grey repeated as often as it has channels; contiguous."""
    return as_network_takes(channels, spec.preprocessing.intensity, spec.channels)


def _prepared(channel: Float32Array, source: SourceCase, spec: DatasetSpec) -> Prepared:
    return preprocess(Volume(channel, source.image.geometry, spec.modality), _rule_for(channel, source, spec))


def _rule_for(channel: Float32Array, source: SourceCase, spec: DatasetSpec) -> Preprocessing:
    """The deployed rule, or what is left of it to do where others have applied it already."""
    if not source.from_hdf5 or spec.hdf5 is None or spec.hdf5.intensity is None:
        return spec.preprocessing
    # Normalised values may lie below any modality value and none of them is to be raised. The space around them looks
    # like the darkest of them: which value the rule gave to it is not in the file.
    return spec.preprocessing.model_copy(
        update={"intensity": spec.hdf5.intensity, "padding_value": float(channel.min())}
    )


def _label_on(prepared: Prepared, label_map: UInt8Array, spec: DatasetSpec) -> UInt8Array:
    turned = np.ascontiguousarray(prepared.orientation.apply(label_map))
    if spec.preprocessing.interpolation == "nearest":
        return resample_nearest(turned, prepared.spatial_shape)
    return majority_labels(turned, prepared.spatial_shape)


def _as_plane(sample: Sample) -> Sample:
    plane = sample.plane(0)
    return Sample(sample.name, sample.patient, plane.image, plane.label_map, plane.known, plane.padding)


def _pixel_digest(source: SourceCase) -> str:
    sha256 = hashlib.sha256(repr(source.image.voxels.shape).encode())
    sha256.update(np.ascontiguousarray(source.image.voxels).data)
    return sha256.hexdigest()
