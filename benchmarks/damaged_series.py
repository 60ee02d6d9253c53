"""What series readers make of damaged series: right, refused, or wrong without a word, as JSON or as a table.

    python -m pip install dicom2nifti        # in an environment of its own: it brings GDCM
    python benchmarks/damaged_series.py [--markdown]

One clean series and twenty damaged ones are written and given to ucseg, to SimpleITK's series reader, to highdicom's
`get_volume_from_series` and to dicom2nifti. A volume is right if it holds the voxels of one true volume and each of its
slices lies where the slice's own file says, within 0.1 mm; damage that leaves no true volume can only be refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset
from scipy.ndimage import map_coordinates

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the phantoms of the tests

from tests.bad_inputs import moved, setting
from tests.phantoms import CtPhantom, derived_uid, edit_file, write_ct_series
from ucseg_runtime.config import WHATEVER_FITS
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.inputs import found_in
from ucseg_runtime.model_folder import default_model_folder, load_model
from ucseg_runtime.nifti import geometry_from_ras
from ucseg_runtime.series_steps import StageTimes, read_series

PHANTOM = CtPhantom(shape=(20, 40, 48), spacing_mm=(2.0, 1.25, 1.0))
_TOLERANCE_MM = 0.1
_TOLERANCE_HU = 0.51
_TOLERANCE_RESAMPLED_HU = 40.0  # mean of a slice; 30 at most were seen, and 380 where a tilt was ignored

Edit = Callable[[int, FileDataset], object]


@dataclass(frozen=True)
class Slice:
    """A slice as its own file says it.

    Attributes:
        values: HU, shape (rows, columns).
        points: LPS of every voxel in mm, shape (rows, columns, 3).
    """

    values: npt.NDArray[np.float64]
    points: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Damage:
    """One way in which a series can be damaged.

    Attributes:
        name: For people.
        write: Makes the series in an empty folder.
        truths: Names of the files of every volume that would be right; none where only a refusal is.
    """

    name: str
    write: Callable[[Path], object]
    truths: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a reader returned.

    Attributes:
        voxels: Shape (z, y, x), in HU.
        affine: From (z, y, x, 1) to LPS mm.
        said: What it told the caller beside the volume; empty for nothing.
    """

    voxels: npt.NDArray[np.float64]
    affine: npt.NDArray[np.float64]
    said: str = ""


class RefusedError(Exception):
    """A reader refused, with its own words."""


def _series(
    edit: Edit = lambda index, dataset: None, omit: Sequence[int] = (), phantom: CtPhantom = PHANTOM, prefix: str = "a"
) -> Callable[[Path], list[Path]]:
    def change(index: int, dataset: FileDataset) -> None:
        edit(index, dataset)

    return lambda folder: write_ct_series(folder, phantom, edit=change, omit=omit, prefix=prefix)


def _only(index: int, change: Callable[[FileDataset], object]) -> Edit:
    return lambda place, dataset: change(dataset) if place == index else None


def _from(index: int, change: Callable[[FileDataset], object]) -> Edit:
    return lambda place, dataset: change(dataset) if place >= index else None


def _copied(**changes: object) -> Callable[[Path], None]:
    """A series with a second file of its eighth slice."""

    def write(folder: Path) -> None:
        copy = folder / "b_0007.dcm"
        copy.write_bytes(_series()(folder)[7].read_bytes())
        if changes:
            edit_file(copy, setting(**changes))

    return write


def _cut_off(folder: Path) -> None:
    path = _series()(folder)[7]
    path.write_bytes(path.read_bytes()[:-1000])


def _tilted(index: int, dataset: FileDataset) -> None:
    moved(sideways_mm=index * PHANTOM.spacing_mm[0] * float(np.tan(np.radians(14.0))))(dataset)


def _localizer(dataset: FileDataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _with_localizer(folder: Path) -> None:
    _series()(folder)
    _series(
        _only(7, lambda dataset: [_localizer(dataset), setting(SOPInstanceUID=derived_uid("b"))(dataset)]),
        [index for index in range(20) if index != 7],
        prefix="b",
    )(folder)


def _two_series(folder: Path) -> None:
    _series()(folder)
    _series(phantom=replace(PHANTOM, series_number=2, shape=(16, 40, 48)), prefix="b")(folder)


def _two_time_points(folder: Path) -> None:
    for number, prefix in enumerate("ab", start=1):
        _series(
            lambda index, dataset, number=number: [
                setting(TemporalPositionIdentifier=number, SOPInstanceUID=derived_uid("time", number, index))(dataset),
                _brighter(dataset) if number == 2 else None,
            ],
            prefix=prefix,
        )(folder)


def _brighter(dataset: FileDataset) -> None:
    dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) + 50).astype(np.uint16).tobytes()


def _report_among_them(folder: Path) -> None:
    def change(dataset: FileDataset) -> None:
        dataset.Modality, dataset.SOPClassUID = "SR", uid.ComprehensiveSRStorage
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = derived_uid("report"), derived_uid("reports")
        for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"):
            del dataset[keyword]

    _series()(folder)
    _series(_only(0, change), range(1, 20), prefix="b")(folder)


DAMAGES = (
    Damage("clean", _series(), ("a",)),
    Damage("one slice missing", _series(omit=(7,)), ()),
    Damage("two end slices missing", _series(omit=(0, 1)), ("a",)),
    Damage("duplicate instance", _copied(), ("a",)),
    Damage("duplicate position, other UID", _copied(SOPInstanceUID=derived_uid("copy"), RescaleIntercept="-1000"), ()),
    Damage("two series in one folder", _two_series, ("a", "b")),
    Damage(
        "two patients under one series UID",
        _series(_from(10, setting(PatientID="OTHER", PatientName="Other^Phantom"))),
        (),
    ),
    Damage("localizer inside the series", _with_localizer, ("a",)),
    Damage("pixel spacing changes half-way", _series(_from(10, setting(PixelSpacing=[1.5, 1.2]))), ()),
    Damage("rescale intercept changes half-way", _series(_from(10, setting(RescaleIntercept="-1000"))), ("a",)),
    Damage("one slice 0.5 mm off", _series(_only(7, moved(0.5))), ("a",)),
    Damage("gantry tilt of 14 degrees", _series(_tilted), ("a",)),
    Damage("one file without position", _series(_only(7, setting(ImagePositionPatient=None))), ()),
    Damage("no orientation", _series(lambda _, dataset: setting(ImageOrientationPatient=None)(dataset)), ()),
    Damage("no pixel spacing", _series(lambda _, dataset: setting(PixelSpacing=None)(dataset)), ()),
    Damage("pixel data cut off", _cut_off, ()),
    Damage("one file without pixel data", _series(_only(7, setting(PixelData=None))), ()),
    Damage("two time points in one series", _two_time_points, ("a", "b")),
    Damage("pixel spacing of zero", _series(lambda _, dataset: setting(PixelSpacing=[0, 0])(dataset)), ()),
    Damage("one slice with other rows", _series(_only(7, setting(Rows=39, PixelData=b"\0" * 39 * 48 * 2))), ()),
    Damage("a report among the images", _report_among_them, ("a",)),
)


def read_by_ucseg(folder: Path) -> Answer:
    """What `ucseg segment` would segment."""
    spec = load_model(default_model_folder()).manifest
    try:
        with found_in(folder, spec, WHATEVER_FITS) as found:
            volume = read_series(found, StageTimes()).volume
    except UcsegError as error:
        raise RefusedError(error.code) from error
    resampled = [note for note in found.notes if "resampled" in note]
    return Answer(volume.voxels.astype(np.float64), volume.geometry.affine, "resampled" if resampled else "")


def read_by_simpleitk(folder: Path) -> Answer:
    """The first series of the folder."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    try:
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
    except RuntimeError as error:
        raise RefusedError(type(error).__name__) from error
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return Answer(SimpleITK.GetArrayFromImage(image).astype(np.float64), affine)


def read_by_highdicom(folder: Path) -> Answer:
    """All files of the folder that hold images."""
    import highdicom

    try:
        datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        volume = highdicom.get_volume_from_series(datasets)
    except Exception as error:  # noqa: BLE001  whatever a library says when it refuses
        raise RefusedError(type(error).__name__) from error
    return Answer(np.asarray(volume.array, dtype=np.float64), np.asarray(volume.affine, dtype=np.float64))


def read_by_dicom2nifti(folder: Path) -> Answer:
    """The image that it writes, turned to x left, y back, z up."""
    import nibabel
    from dicom2nifti import convert_dicom

    with tempfile.TemporaryDirectory() as out:
        try:
            convert_dicom.dicom_series_to_nifti(str(folder), f"{out}/image.nii.gz", reorient_nifti=False)
        except Exception as error:  # noqa: BLE001  whatever a library says when it refuses
            raise RefusedError(type(error).__name__) from error
        image = nibabel.as_closest_canonical(nibabel.load(f"{out}/image.nii.gz"))
        voxels = np.asarray(image.get_fdata())
    geometry = geometry_from_ras(image.affine, voxels.shape[:3]).flipped((1, 2))
    return Answer(voxels.transpose(2, 1, 0)[:, ::-1, ::-1], geometry.affine)


READERS: dict[str, Callable[[Path], Answer]] = {
    "ucseg": read_by_ucseg,
    "SimpleITK": read_by_simpleitk,
    "highdicom": read_by_highdicom,
    "dicom2nifti": read_by_dicom2nifti,
}


def judged(damage: Damage, folder: Path, read: Callable[[Path], Answer]) -> str:
    """``right``, ``refused (…)``, ``resampled and said so``, or ``WRONG`` with what it does."""
    try:
        with _heard() as heard:
            answer = read(folder)
    except RefusedError as refusal:
        return f"refused ({refusal})"
    compare = _resampled_difference if answer.said else _difference
    problems = [compare(answer, _slices_of(folder, prefix)) for prefix in damage.truths] or [
        "a volume as if nothing were amiss"
    ]
    if "" in problems:
        return f"{answer.said} and said so" if answer.said else "right"
    return f"WRONG: {problems[0]}{' (a warning on standard error)' if heard() else ''}"


def _slices_of(folder: Path, prefix: str) -> list[Slice]:
    slices = []
    for path in sorted(folder.glob(f"{prefix}_*.dcm")):
        dataset = pydicom.dcmread(path)
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
        values = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        first = np.array([float(x) for x in dataset.ImagePositionPatient])
        row, column = np.reshape([float(x) for x in dataset.ImageOrientationPatient], (2, 3))
        down, right = (float(x) for x in dataset.PixelSpacing)
        y, x = np.indices(values.shape)[..., None]
        slices.append(Slice(values, first + row * right * x + column * down * y))
    return slices


def _difference(answer: Answer, truth: Sequence[Slice]) -> str:
    """How a volume differs from a true one; empty where it does not."""
    planes = answer.voxels
    if planes.shape[1:] != truth[0].values.shape:
        return f"planes of {planes.shape[1:]} pixels"
    if len(planes) != len(truth):
        return f"{len(planes)} slices for {len(truth)}"
    steps = np.linalg.norm(answer.affine[:3, 0])
    last = np.array(planes.shape[1:]) - 1
    for one in truth:
        z = int(np.argmin([np.abs(plane - one.values).max() for plane in planes]))
        if np.abs(planes[z] - one.values).max() > _TOLERANCE_HU:
            return "other voxels"
        corners = (answer.affine @ (z, 0, 0, 1))[:3], (answer.affine @ (z, *last, 1))[:3]
        off = max(np.linalg.norm(corners[0] - one.points[0, 0]), np.linalg.norm(corners[1] - one.points[-1, -1]))
        if off > _TOLERANCE_MM:
            return f"slices up to {_worst(answer, truth):.1f} mm off, step {steps:.3f} mm"
    return ""


def _resampled_difference(answer: Answer, truth: Sequence[Slice]) -> str:
    """The same for a volume on another grid: its values at the places of the true voxels, linear between its own."""
    inverse = np.linalg.inv(answer.affine)
    for one in truth:
        index = one.points @ inverse[:3, :3].T + inverse[:3, 3]
        found = map_coordinates(answer.voxels, np.moveaxis(index, -1, 0), order=1, mode="nearest")
        if np.abs(found - one.values).mean() > _TOLERANCE_RESAMPLED_HU:
            return "resampled to another place"
    return ""


def _worst(answer: Answer, truth: Sequence[Slice]) -> float:
    distances = []
    for one in truth:
        z = int(np.argmin([np.abs(plane - one.values).max() for plane in answer.voxels]))
        distances.append(float(np.linalg.norm((answer.affine @ (z, 0, 0, 1))[:3] - one.points[0, 0])))
    return max(distances)


@contextmanager
def _heard() -> Iterator[Callable[[], str]]:
    """What native libraries print on standard error meanwhile."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        text: list[str] = []
        try:
            yield lambda: text[0]
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


def main() -> None:
    """Write every series, ask every reader, print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print a table in place of JSON")
    parser.add_argument("--readers", nargs="*", choices=READERS, default=list(READERS))
    arguments = parser.parse_args()
    rows = {}
    for damage in DAMAGES:
        with tempfile.TemporaryDirectory() as folder:
            damage.write(Path(folder))
            rows[damage.name] = {name: judged(damage, Path(folder), READERS[name]) for name in arguments.readers}
    if arguments.markdown:
        print("\n".join(_table(rows, arguments.readers)))
    else:
        from measuring import environment  # beside this script, which the tests import from elsewhere

        packages = ("SimpleITK", "highdicom", "dicom2nifti", "pydicom", "nibabel")
        print(json.dumps({"environment": environment(packages), "rows": rows}, indent=2))


def _table(rows: dict[str, dict[str, str]], readers: Sequence[str]) -> Iterator[str]:
    yield f"| input | {' | '.join(readers)} |"
    yield f"|---|{'---|' * len(readers)}"
    for name, verdicts in rows.items():
        cells = (f"**{text}**" if text.startswith("WRONG") else text for text in verdicts.values())
        yield f"| {name} | {' | '.join(cells)} |"
    counts = [sum(row[name].startswith("WRONG") for row in rows.values()) for name in readers]
    yield f"| wrong without an error | {' | '.join(map(str, counts))} |"


if __name__ == "__main__":
    main()
