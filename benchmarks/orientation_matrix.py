"""Every output in every orientation: is each organ where the phantom has it, and left where it is left?

For 48 orientations (every way to lay rows, columns and slices along the axes of the patient) and oblique ones, made-up
series are written, and labels that are known, through the writers of `ucseg segment`. Each output is read by a program
that shares no code with them: SEG and label map by dcmqi, NIfTI by SimpleITK and nibabel, NRRD by SimpleITK, the
Parametric Map by pydicom and the equation of the standard, RT Structure Set by matplotlib, which fills its contours.

A cell passes where the centroid of every organ is less than half of the smallest side of a voxel away from where the
phantom has it, and the order of the marker organs from right to left is right.

    python benchmarks/orientation_matrix.py [--n 68] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import dcmqi
import nibabel
import nibabel.affines
import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK  # noqa: N813
from matplotlib.path import Path as Polygon
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # phantoms are those of the tests

from tests.phantoms import CtPhantom, all_orientations
from tests.results import IDENTITY, segmentation_of, sources_of
from ucseg_runtime.config import SegEncoding
from ucseg_runtime.dicom.pmap_writer import write_pmap
from ucseg_runtime.dicom.rtstruct_writer import write_rtstruct
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.nifti import write_nifti
from ucseg_runtime.nrrd_file import write_nrrd
from ucseg_runtime.segmentation import UNCERTAINTY_SCALE

Json = dict[str, Any]
Points = npt.NDArray[np.float64]
Centroids = dict[int, Points]
"""By label, LPS in mm."""

SHAPE = (14, 30, 34)
OBLIQUE_SEED = 20
ORGANS_RIGHT_TO_LEFT = (1, 3, 2)
"""Liver, spine, spleen."""


def phantoms(count: int) -> Iterator[tuple[str, CtPhantom]]:
    """The first of 48 orientations and then of oblique ones, each half of which is numbered downwards."""
    straight = [
        (f"straight {number}", replace(phantom, shape=SHAPE)) for number, phantom in enumerate(all_orientations(), 1)
    ]
    turned = Rotation.random(max(0, count - len(straight)), rng=np.random.default_rng(OBLIQUE_SEED)).as_matrix()
    oblique = [
        (f"oblique {number}", CtPhantom(shape=SHAPE, orientation=(*turn[0], *turn[1]), flip=bool(number % 2)))
        for number, turn in enumerate(turned, 1)
    ]
    yield from [*straight, *oblique][:count]


def expected_centroids(phantom: CtPhantom) -> Centroids:
    """From the labels and the phantom's own rule of places, written out here once more."""
    row, column = np.reshape(phantom.orientation, (2, 3))
    steps = np.stack([np.cross(row, column), column, row]) * np.reshape(phantom.spacing_mm, (3, 1))
    labels = phantom.labels
    return {
        label: np.argwhere(labels == label).mean(axis=0) @ steps + phantom.origin_mm
        for label in range(1, int(labels.max()) + 1)
    }


# Readers


def by_dcmqi(path: Path) -> Centroids:
    """All segments of a DICOM SEG, binary or label map."""
    tool = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    with tempfile.TemporaryDirectory() as folder:
        command = [str(tool), "--inputDICOM", str(path), "--outputDirectory", folder]
        subprocess.run(command, check=True, capture_output=True)
        found: Centroids = {}
        for file in sorted(Path(folder).glob("*.nrrd")):
            found |= by_simpleitk(file)
    return found


def by_simpleitk(path: Path) -> Centroids:
    """NIfTI or NRRD; SimpleITK's points are LPS."""
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    return {
        int(label): np.array(
            image.TransformContinuousIndexToPhysicalPoint(np.argwhere(array == label).mean(axis=0)[::-1].tolist())
        )
        for label in np.unique(array[array > 0])
    }


def by_nibabel(path: Path) -> Centroids:
    """NIfTI; nibabel's points are RAS."""
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    return {
        int(label): nibabel.affines.apply_affine(image.affine, np.argwhere(array == label).mean(axis=0)) * (-1, -1, 1)
        for label in np.unique(array[array > 0])
    }


def by_the_equation(path: Path) -> Centroids:
    """Parametric Map in which the uncertainty is a label; equation C.7.6.2.1-1 of PS3.3."""
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    dy, dx = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    points: dict[int, list[Points]] = {}
    for group, plane in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for label in np.unique(plane[plane > 0]):
            y, x = np.nonzero(plane == label)
            points.setdefault(int(label), []).append(origin + np.outer(x * dx, row) + np.outer(y * dy, column))
    return {label: np.concatenate(parts).mean(axis=0) for label, parts in points.items()}


def by_matplotlib(path: Path, phantom: CtPhantom) -> Centroids:
    """RT Structure Set: the centres of the voxels of the source images that lie inside the contours."""
    sources = {source.SOPInstanceUID: source for source in sources_of(phantom)}
    y, x = (grid.ravel() for grid in np.mgrid[: phantom.shape[1], : phantom.shape[2]])
    points: dict[int, list[Points]] = {}
    for region in pydicom.dcmread(path).ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            source = sources[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = np.reshape(source.ImageOrientationPatient, (2, 3)).astype(float)
            dy, dx = (float(value) for value in source.PixelSpacing)
            centres = np.array(source.ImagePositionPatient, float) + np.outer(x * dx, row) + np.outer(y * dy, column)
            plane = np.stack([row, column]).T
            polygon = Polygon(np.array(contour.ContourData, float).reshape(-1, 3) @ plane)
            points.setdefault(int(region.ReferencedROINumber), []).append(
                centres[polygon.contains_points(centres @ plane)]
            )
    return {label: np.concatenate(parts).mean(axis=0) for label, parts in points.items()}


def outputs_of(phantom: CtPhantom, folder: Path) -> dict[str, Callable[[], Centroids]]:
    """Write every output; by its name and reader, what that reader finds."""
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)
    stored = np.divide(segmentation.label_map, UNCERTAINTY_SCALE, dtype=np.float32)
    seg, labelmap, pmap, structures = (folder / f"{name}.dcm" for name in ("seg", "labelmap", "pm", "rtstruct"))
    nifti, nrrd = folder / "labels.nii.gz", folder / "labels.nrrd"
    write_seg(seg, segmentation, sources, IDENTITY)
    write_seg(labelmap, segmentation, sources, IDENTITY, SegEncoding("labelmap"))
    write_pmap(pmap, replace(segmentation, uncertainty=stored), sources, IDENTITY)
    write_rtstruct(structures, segmentation, sources, IDENTITY)
    write_nifti(nifti, segmentation.label_map, phantom.geometry)
    write_nrrd(nrrd, segmentation.label_map, phantom.geometry)
    return {
        "SEG, dcmqi": lambda: by_dcmqi(seg),
        "LABELMAP, dcmqi": lambda: by_dcmqi(labelmap),
        "PM, equation of the standard": lambda: by_the_equation(pmap),
        "NIfTI, SimpleITK": lambda: by_simpleitk(nifti),
        "NIfTI, nibabel": lambda: by_nibabel(nifti),
        "NRRD, SimpleITK": lambda: by_simpleitk(nrrd),
        "RTSTRUCT, matplotlib": lambda: by_matplotlib(structures, phantom),
    }


def judged(found: Mapping[int, Points], phantom: CtPhantom) -> Json:
    """Largest error of a centroid in voxels, and whether right and left are right."""
    expected = expected_centroids(phantom)
    if set(found) != set(expected):
        return {"passed": False, "error_voxels": None, "right_is_right": None}
    errors = [float(np.linalg.norm(found[label] - expected[label])) for label in expected]
    error_voxels = max(errors) / min(phantom.spacing_mm)
    places = [found[label][0] for label in ORGANS_RIGHT_TO_LEFT]
    right_is_right = all(right < left for right, left in pairwise(places))
    return {
        "passed": error_voxels < 0.5 and right_is_right,
        "error_voxels": error_voxels,
        "right_is_right": right_is_right,
    }


def run(count: int) -> Json:
    """Judge every output in the first `count` orientations."""
    cells: dict[str, list[Json]] = {}
    for name, phantom in phantoms(count):
        with tempfile.TemporaryDirectory() as folder:
            for kind, read in outputs_of(phantom, Path(folder)).items():
                cells.setdefault(kind, []).append({"orientation": name, **judged(read(), phantom)})
    return {kind: _summary(results) for kind, results in cells.items()}


def _summary(results: list[Json]) -> Json:
    failed = [result for result in results if not result["passed"]]
    errors = [result["error_voxels"] for result in results if result["error_voxels"] is not None]
    return {
        "orientations": len(results),
        "passed": len(results) - len(failed),
        "largest_error_voxels": float(f"{max(errors, default=float('nan')):.2g}"),
        "failed": failed,
    }


def main() -> None:
    """Print the table as JSON; exit code 1 where a cell fails."""
    from measuring import environment  # beside this script; the tests import the rest of it from elsewhere

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=68, help="orientations: the first 48 are straight; default 68")
    parser.add_argument("--json", type=Path, help="file to write")
    chosen = parser.parse_args()
    started = time.perf_counter()
    outputs = run(chosen.n)
    report = {
        "outputs": outputs,
        "seconds": round(time.perf_counter() - started, 1),
        **environment(("highdicom", "pydicom", "dcmqi", "SimpleITK", "nibabel", "matplotlib")),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(summary["failed"] for summary in outputs.values()))


if __name__ == "__main__":
    main()
