"""The whole way from DICOM to a SEG as a user would write it today, without ucseg's runtime, around any sliding window.

Reading is SimpleITK's, resampling torch's (antialiased, onto the very grid that ucseg uses), components SciPy's, the
SEG highdicom's. Of ucseg only the networks and the description of the model are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK  # noqa: N813
import torch
from pydicom.sr.codedict import codes
from scipy import ndimage
from torch import Tensor, nn

from ucseg_runtime.manifest import ModelSpec, PiecewiseLinear
from ucseg_training.nets import DualNet

SlidingWindow = Callable[[Tensor], Tensor]
"""Image (1, 1, z, y, x) on the model grid to averaged probabilities (1, channels, z, y, x)."""

Labels = npt.NDArray[np.uint8]


class Stopwatch:
    """Wall time of each stage in s."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the statements inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


class ProbabilityNet(nn.Module):
    """Both subnets and the UPG as one module that gives what is averaged over tiles: probabilities.

    Args:
        net: The trio; axes (z, y, x).
    """

    def __init__(self, net: DualNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """(tiles, channels, z, y, x), in [0, 1]: the foreground alone for a sigmoid model."""
        fused = self.net(image).fused_logits.float()
        return torch.sigmoid(fused[:, 1:2]) if self.net.config.activation == "sigmoid" else torch.softmax(fused, dim=1)


def read_series(study: Path) -> tuple[SimpleITK.Image, list[str]]:
    """The series of a folder, and its files in slice order."""
    reader = SimpleITK.ImageSeriesReader()
    folder = next(path.parent for path in study.rglob("*.dcm"))
    names = list(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetFileNames(names)
    return reader.Execute(), names


def to_network(image: SimpleITK.Image, spec: ModelSpec) -> Tensor:
    """The image on the model grid in network units, (1, 1, z, y, x). Axial series in LPS order only."""
    intensity, spacing = spec.preprocessing.intensity, spec.preprocessing.spacing_mm
    if not isinstance(intensity, PiecewiseLinear) or spacing is None:
        raise TypeError("only models with a spacing and a piecewise linear intensity are compared")
    voxels = torch.from_numpy(SimpleITK.GetArrayFromImage(image).astype(np.float32))
    have = image.GetSpacing()[::-1]
    shape = [max(1, round(side * old / new)) for side, old, new in zip(voxels.shape, have, spacing, strict=True)]
    resampled = _resized(voxels, shape).clamp_min(spec.preprocessing.padding_value).numpy()
    units, inputs = zip(*intensity.knots, strict=True)
    return torch.from_numpy(np.interp(resampled, units, inputs).astype(np.float32))[None, None]


def to_labels(probabilities: Tensor, image: SimpleITK.Image, spec: ModelSpec) -> Labels:
    """Averages to labels on the source grid, cleaned up as the model asks for."""
    size = image.GetSize()[::-1]
    if any(new < old for new, old in zip(size, probabilities.shape[2:], strict=True)):
        scores = torch.stack([_resized(channel, list(size)) for channel in probabilities[0]])
    else:  # nothing shrinks: the same values in one call
        scores = nn.functional.interpolate(probabilities, size=size, mode="trilinear", align_corners=False)[0]
    labels = (scores[0] > 0.5 if spec.activation == "sigmoid" else scores.argmax(dim=0)).numpy().astype(np.uint8)
    voxel_ml = float(np.prod(image.GetSpacing())) / 1000.0
    for label in spec.postprocessing.largest_component:
        _keep(labels, label, lambda voxels: voxels == voxels.max())
    for label, least_ml in spec.postprocessing.smallest_component_ml.items():
        _keep(labels, label, lambda voxels, least=least_ml: voxels * voxel_ml >= least)  # type: ignore[misc]
    return labels


def write_seg(labels: Labels, names: list[str], spec: ModelSpec, target: Path) -> None:
    """A binary DICOM Segmentation on the source images."""
    sources = [pydicom.dcmread(name) for name in names]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=spec.name, version=spec.version, family=codes.cid7162.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=item.label,
            segment_label=item.name,
            segmented_property_category=hd.sr.CodedConcept(
                item.category.value, item.category.scheme, item.category.meaning
            ),
            segmented_property_type=hd.sr.CodedConcept(item.type.value, item.type.scheme, item.type.meaning),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for item in spec.classes
    ]
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name=spec.name,
        software_versions=spec.version,
        device_serial_number="0",
    )
    segmentation.save_as(target)


def _resized(voxels: Tensor, shape: list[int]) -> Tensor:
    """(z, y, x) resampled in plane, then along z; shrinking averages."""
    planes = nn.functional.interpolate(voxels[:, None], size=shape[1:], mode="bilinear", antialias=True)[:, 0]
    columns = planes.flatten(1)[None, None]
    along_z = nn.functional.interpolate(columns, size=(shape[0], columns.shape[3]), mode="bilinear", antialias=True)
    return along_z.reshape(shape)


def _keep(labels: Labels, label: int, wanted: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> None:
    """Erase the 26-connected components of a label that are not wanted for their size."""
    components, found = ndimage.label(labels == label, structure=np.ones((3, 3, 3)))
    if found:
        kept = wanted(np.bincount(components.ravel())[1:])
        labels[np.concatenate([[False], ~kept])[components]] = 0
