"""The images on which engines are compared: prepared training cases, DICOM series or clips, or the demo's chest CT.

Those with labels are what models are calibrated on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ucseg_runtime.clip_model import frames_at_a_time, require_picture_model
from ucseg_runtime.dicom.frame_images import scan_with_frames
from ucseg_runtime.dicom.frame_reader import FrameReader
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series, unusable_because
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError
from ucseg_runtime.geometry import frame_grid
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.packaged_data import write_demo_study
from ucseg_runtime.volume import Volume
from ucseg_training.data.case import MOST_CLASSES, Case, load_case

_DEMO_MODALITY = "CT"


def volumes_to_compare_on(folder: Path | None, spec: ModelSpec) -> Iterator[Volume]:
    """Volumes one after the other, in a stable order.

    Args:
        folder: With prepared cases (NPZ), or with DICOM files, of which every series that fits is one volume, or its
            first frames are; None: the chest CT of the demo, which is fetched once.
        spec: The model.

    Raises:
        InputError: The folder holds nothing of the kind, or something that cannot be read; or no folder was given and
            the model is not made for CT.
    """
    modality = spec.modality
    if folder is not None:
        prepared = sorted(folder.glob("*.npz"))
        yield from _prepared_cases(prepared, modality) if prepared else _dicom(folder, spec)
    elif modality == _DEMO_MODALITY:
        with tempfile.TemporaryDirectory() as demo:
            write_demo_study(Path(demo))
            yield from _dicom_series(Path(demo), modality)
    else:
        raise InputError(
            f"there are no {modality} volumes to compare engines on.", hint="Give a folder with some: --cases DIR."
        )


def labelled_cases(folder: Path, spec: ModelSpec) -> Iterator[Case]:
    """Prepared cases (NPZ) one after the other, in a stable order, with their labels.

    Args:
        folder: With prepared cases.
        spec: The model.

    Raises:
        InputError: The folder holds none, one cannot be read or has labels that the model does not have, or the model
            is for pictures.
    """
    if spec.image_kind == "frames":
        raise InputError("labelled cases are volumes, and this model is for pictures and clips.")
    if len(spec.classes) > MOST_CLASSES:
        raise InputError(f"prepared cases hold {MOST_CLASSES} classes at most; the model has {len(spec.classes)}.")
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise InputError(
            "the folder of cases holds no labelled cases (NPZ); DICOM series carry no labels.",
            hint="Give the folder of prepared cases that ucseg-train wrote, or save cases with save_case.",
        )
    for ordinal, path in enumerate(paths, start=1):
        case = load_case(path)
        highest = int(case.label_map.max(initial=0))
        if highest > len(spec.classes):
            raise InputError(
                f"case {ordinal} of {len(paths)} has label {highest}; the model has labels 1 … {len(spec.classes)}.",
                hint="Prepare the cases with the classes of this model.",
            )
        yield case


def _prepared_cases(paths: Sequence[Path], modality: str) -> Iterator[Volume]:
    for path in paths:
        case = load_case(path)
        yield Volume(case.voxels, case.geometry, modality)


def _dicom(folder: Path, spec: ModelSpec) -> Iterator[Volume]:
    return _dicom_series(folder, spec.modality) if spec.image_kind == "slices" else _clips(folder, spec)


def _clips(folder: Path, spec: ModelSpec) -> Iterator[Volume]:
    """As many frames of every series as are segmented together."""
    require_picture_model(spec)
    found = scan_with_frames(scan(folder))
    usable = [s for s in found.series if unusable_because(s, spec.modality, kind="frames") is None]
    for series in usable or [select_series(found, spec.modality, kind="frames").chosen]:
        with FrameReader(series, spec.channels) as reader:
            frames = reader.read(slice(0, frames_at_a_time(spec, series.rows, series.columns)))
        yield Volume(frames, frame_grid(*frames.shape[1:]), spec.modality)


def _dicom_series(folder: Path, modality: str) -> Iterator[Volume]:
    found = scan(folder)
    usable = [series for series in found.series if unusable_because(series, modality) is None]
    # Where none is, choosing one says why.
    for series in usable or [select_series(found, modality).chosen]:
        yield read_volume(series)
