"""The demo, on the real CT that it fetches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from ucseg_runtime.cli.app import app
from ucseg_runtime.publish import MONTAGE, PAGE, RECORD, REPORT, SEGMENTATION, THUMBNAIL, UNCERTAINTY

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_demo_leaves_all_results(demo_output: Path) -> None:
    names = {path.name for path in demo_output.iterdir()}
    assert names == {SEGMENTATION, UNCERTAINTY, REPORT, MONTAGE, RECORD, PAGE, THUMBNAIL}


def test_demo_report_can_be_sent_by_mail(demo_output: Path) -> None:
    assert (demo_output / PAGE).stat().st_size <= 20_000_000


def test_demo_finds_litres_of_lung(demo_output: Path) -> None:
    record = json.loads((demo_output / RECORD).read_text())
    volumes = {item["name"]: item["volume_ml"] for item in record["measurements"]}
    assert 2000 < volumes["lungs"] < 7000


def test_demo_lungs_are_dark_in_the_ct_that_they_lie_on(demo_output: Path, patient_a_folder: Path) -> None:
    images = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, sorted(patient_a_folder.rglob("*.dcm")))}
    seg = pydicom.dcmread(demo_output / SEGMENTATION)
    lungs = next(item.SegmentNumber for item in seg.SegmentSequence if item.SegmentLabel == "lungs")
    values = []
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == lungs:
            reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            image = images[reference]
            assert group.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
            values.append(image.pixel_array[frame > 0] * image.RescaleSlope + image.RescaleIntercept)
    assert np.median(np.concatenate(values)) < -700
