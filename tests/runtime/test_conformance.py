"""All objects of a real study: no errors, known warnings, the same voxels."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from tests.results import conformance, frames_of, labels_from_frames, segmentation_on, write_objects
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.series import scan

ACCEPTED = {
    # No public scheme has a code for evidential uncertainty, and dciodvfy cannot know a private one.
    "Unrecognized defined term <99UCSEG> for value 1 of attribute <Coding Scheme Designator>",
    # The source has these elements, empty.
    "Missing attribute or value that would be needed to build DICOMDIR - Study Time",
    "Missing attribute or value that would be needed to build DICOMDIR - Study ID",
}


def height_mm(path: Path) -> float:
    """Place of a slice."""
    return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    "slices", [pytest.param(40, id="first slices"), pytest.param(133, id="whole series", marks=pytest.mark.long)]
)
def test_results_on_patient_a_have_no_errors_and_hold_the_label_map(
    slices: int, patient_a_folder: Path, tmp_path: Path
) -> None:
    lowest = sorted(patient_a_folder.rglob("*.dcm"), key=height_mm)[:slices]
    assert len(lowest) == slices
    (tmp_path / "study").mkdir()
    for number, path in enumerate(lowest):
        shutil.copyfile(path, tmp_path / "study" / f"{number}.dcm")
    (series,) = scan(tmp_path / "study").series
    volume, sources = read_volume(series), source_headers(series)
    # Lungs and air as labels: ragged borders, many components, every slice; without the noise of single voxels, of
    # which each would be a contour of its own.
    labels = np.digitize(volume.voxels, [-900, -500, 300]).astype(np.uint8) % 4
    labels = np.stack([cv2.medianBlur(plane, 15) for plane in labels])
    labels[15:25] = 0
    assert [item for item in range(4) if item in labels[:15]] == [0, 1, 2, 3]

    paths = write_objects(tmp_path / "results", segmentation_on(volume.geometry, labels), sources)

    for kind, path in paths.items():
        report = conformance(path)
        assert not report.errors, kind
        assert set(report.warnings) <= ACCEPTED, kind
    found = labels_from_frames(frames_of(paths["binary"], sources), labels.shape)
    np.testing.assert_array_equal(found, labels)
