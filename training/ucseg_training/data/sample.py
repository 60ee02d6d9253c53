"""A training sample: one image in network input units on the model grid, with its label, on disk and in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.intensity import Intensity, intensity_map
from ucseg_training.data.case import Case, KnownBits

FORMAT = "ucseg sample 1"


@dataclass(frozen=True, eq=False)
class Sample:
    """What a network can be trained on or tried on.

    Attributes:
        name: As messages name it.
        patient: Who it is of; part of no message.
        image: float32, shape (channels, *spatial), network input units. Spatial axes are (z, y, x) for volumes and
            (y, x) for planes.
        label_map: uint8, shape (*spatial); None for an unlabelled sample.
        known: uint8, shape (*spatial), bits as in `Case.known`; None where every class is known everywhere.
        padding: float32, shape (channels,): network input of the space outside the image.

    Raises:
        InputError: The arrays do not belong together.
    """

    name: str
    patient: str
    image: Float32Array
    label_map: UInt8Array | None
    known: KnownBits | None
    padding: Float32Array

    def __post_init__(self) -> None:
        spatial = self.image.shape[1:]
        for part, array in (("label map", self.label_map), ("known classes", self.known)):
            if array is not None and array.shape != spatial:
                raise InputError(f"image and labels do not belong together: image {spatial}, {part} {array.shape}.")
        if self.image.ndim not in (3, 4) or self.padding.shape != self.image.shape[:1]:
            raise InputError(
                f"an image of shape {self.image.shape} with {len(self.padding)} padding values is no sample; expected "
                "(channels, y, x) or (channels, z, y, x) and one value per channel."
            )

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Sides of the image."""
        return self.image.shape[1:]

    def plane(self, z: int) -> Sample:
        """One slice of a volume as a sample of its own, a view; its name tells the slice, from 1."""
        return replace(
            self,
            name=f"{self.name} slice {z + 1}",
            image=self.image[:, z],
            label_map=None if self.label_map is None else self.label_map[z],
            known=None if self.known is None else self.known[z],
        )


def sample_from_case(case: Case, rule: Intensity, padding_value: float) -> Sample:
    """A case on the model grid in network input units; `padding_value` is in modality units."""
    to_input = intensity_map(case.voxels, rule)
    return Sample(
        name=case.name,
        patient=case.name,
        image=to_input(case.voxels)[None],
        label_map=case.label_map,
        known=case.known,
        padding=to_input(np.full(1, padding_value, dtype=np.float32)),
    )


@dataclass(frozen=True)
class StoredSample:
    """A sample on disk.

    Attributes:
        path: Where it lies.
        shape: Of the image.
        pixel_digest: SHA-256 over the source's pixels; equal for copies of one image.
    """

    path: Path
    shape: tuple[int, ...]
    pixel_digest: str


def save_sample(sample: Sample, path: Path, pixel_digest: str) -> None:
    """Write a sample as safetensors, without its name and patient, which its case list has; complete or not at all.

    Args:
        sample: What to write.
        path: Target.
        pixel_digest: SHA-256 over the source's pixels.

    Raises:
        OutputError: The file cannot be written.
    """
    arrays = {"image": sample.image, "padding": sample.padding, "label_map": sample.label_map, "known": sample.known}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, str(temporary), {"format": FORMAT, "pixels": pixel_digest})
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"a prepared sample cannot be written ({type(error).__name__}).",
            hint="Check that the folder of prepared samples exists, is writable and has space left.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def inspect_sample(path: Path) -> StoredSample:
    """Shape and digest of a sample, read from the head of its file.

    Raises:
        InputError: Not a sample.
    """
    try:
        with safe_open(str(path), framework="np") as stored:
            metadata = stored.metadata() or {}
            if metadata["format"] != FORMAT:
                raise ValueError(metadata["format"])
            return StoredSample(path, tuple(stored.get_slice("image").get_shape()), metadata["pixels"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _not_a_sample(error) from error


def load_sample(path: Path, name: str, patient: str, z: int | None = None) -> Sample:
    """Read what `save_sample` wrote.

    Args:
        path: Where it lies.
        name: Of the case.
        patient: Of the case.
        z: Read one slice of a volume alone, as `Sample.plane` gives it.

    Raises:
        InputError: Not a sample, or one without that slice.
    """
    try:
        with safe_open(str(path), framework="np") as stored:
            names = set(stored.keys())
            image = stored.get_tensor("image") if z is None else stored.get_slice("image")[:, z]
            planes = {
                part: stored.get_tensor(part) if z is None else stored.get_slice(part)[z]
                for part in ("label_map", "known")
                if part in names
            }
            padding = stored.get_tensor("padding")
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise _not_a_sample(error) from error
    name = name if z is None else f"{name} slice {z + 1}"
    return Sample(name, patient, image, planes.get("label_map"), planes.get("known"), padding)


def _not_a_sample(error: Exception) -> InputError:
    return InputError(
        f"a prepared sample cannot be read ({type(error).__name__}).",
        hint="Delete the folder of prepared samples; the next run makes them again.",
    )
