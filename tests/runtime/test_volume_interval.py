"""The interval of a volume: what it holds, how it grows, and what becomes of it in the outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from tests.calibration_phantom import calibration
from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from tests.results import nothing_found, segmentation_of, segmentation_on
from ucseg_runtime.calibration import CALIBRATION_NAME
from ucseg_runtime.cli.app import app
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.segmentation import Segmentation, SegmentMeasurement, measure, ready_to_write
from ucseg_runtime.volume_interval import doubtful_volumes_ml, volume_interval_ml, with_volume_intervals

PHANTOM = CtPhantom()
AMOUNT = st.floats(0.0, 1e4)


def one_segment(uncertainty: float) -> Segmentation:
    """160 voxels of class 2, every voxel of the volume equally uncertain."""
    labels = np.zeros(PHANTOM.shape, dtype=np.uint8)
    labels[2:4, 4:6, :40] = 2
    values = np.full(PHANTOM.shape, uncertainty, dtype=np.float32)
    return replace(segmentation_on(PHANTOM.geometry, labels), uncertainty=values)


def interval_of(segmentation: Segmentation, index: int, factor: float | None = None) -> tuple[float, float]:
    found = None if factor is None else calibration("0" * 64, labels=5, factor=factor)
    item = with_volume_intervals(measure(segmentation), segmentation, found)[index]
    assert item.volume_interval_ml is not None
    return item.volume_interval_ml


@given(volume=AMOUNT, doubtful=AMOUNT, factor=st.none() | st.floats(0.0, 100.0))
def test_interval_holds_the_volume_and_is_not_negative(volume: float, doubtful: float, factor: float | None) -> None:
    low, high = volume_interval_ml(volume, doubtful, factor)
    assert 0.0 <= low <= volume <= high


@given(volume=AMOUNT, doubtful=AMOUNT, more=AMOUNT, factor=st.floats(0.0, 100.0))
def test_interval_widens_with_doubt_and_with_the_factor(
    volume: float, doubtful: float, more: float, factor: float
) -> None:
    low, high = volume_interval_ml(volume, doubtful, factor)
    for wider in (
        volume_interval_ml(volume, doubtful + more, factor),
        volume_interval_ml(volume, doubtful, factor + 1),
    ):
        assert wider[0] <= low
        assert wider[1] >= high


def test_interval_by_hand() -> None:
    volume = 160 * PHANTOM.geometry.voxel_volume_ml
    assert interval_of(one_segment(0.25), 1) == pytest.approx((0.75 * volume, 1.25 * volume))
    assert interval_of(one_segment(0.25), 1, factor=2.0) == pytest.approx((0.5 * volume, 1.5 * volume))
    assert interval_of(one_segment(0.25), 1, factor=8.0) == pytest.approx((0.0, 3.0 * volume))


def test_empty_segment_begins_at_nothing_and_ends_with_what_may_be_anything() -> None:
    sure, unsure = one_segment(0.25), one_segment(0.75)
    background = (unsure.label_map == 0).sum() * PHANTOM.geometry.voxel_volume_ml
    assert interval_of(sure, 0) == (0.0, 0.0)
    assert interval_of(unsure, 0) == pytest.approx((0.0, 0.75 * background))
    assert interval_of(nothing_found(PHANTOM), 0)[0] == 0.0


def test_stored_uncertainty_of_a_server_gives_the_same_intervals() -> None:
    segmentation = one_segment(0.75)
    measured = measure(segmentation)
    stored = doubtful_volumes_ml(measured, ready_to_write(segmentation))
    assert stored == pytest.approx(doubtful_volumes_ml(measured, segmentation), rel=1e-4)


def test_coverage_is_promised_only_where_the_class_was_fitted() -> None:
    segmentation = segmentation_of(PHANTOM)
    measured = measure(segmentation)

    def promised(factor: float | None) -> set[float | None]:
        found = with_volume_intervals(measured, segmentation, calibration("0" * 64, labels=5, factor=factor))
        return {item.volume_interval_coverage for item in found}

    assert promised(1.5) == {0.9}
    assert promised(None) == {None}
    assert {item.volume_interval_coverage for item in with_volume_intervals(measured, segmentation, None)} == {None}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_ct_series(folder, CtPhantom(shape=(8, 40, 48)))
    return folder


def segment(study: Path, model: Path, out: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["segment", str(study), "--model", str(model), "--out", str(out), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout + ("" if "--json" in arguments else result.stderr)


def model_with(folder: Path, text: str | None) -> Path:
    proven(ModelPhantom(tile_shape=(16, 32, 32)).write(folder))
    if text is not None:
        (folder / CALIBRATION_NAME).write_text(text.replace("DIGEST", load_model(folder).digest), encoding="utf-8")
    return folder


def fitted(factor: float) -> str:
    return calibration("0" * 64, factor=factor).as_json().replace("0" * 64, "DIGEST")


def volumes(report: Dataset) -> list[Dataset]:
    (container,) = [item for item in report.ContentSequence if meaning(item) == "Imaging Measurements"]
    return [item for group in container.ContentSequence for item in group.ContentSequence if meaning(item) == "Volume"]


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def test_interval_is_in_record_json_table_and_report(study: Path, tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", fitted(2.0))
    shown = json.loads(segment(study, model, tmp_path / "json", "--json"))["measurements"]
    table = segment(study, model, tmp_path / "table")
    record = json.loads((tmp_path / "json" / "record.json").read_text(encoding="utf-8"))["measurements"]

    assert record == shown
    for item, volume in zip(shown, volumes(dcmread(tmp_path / "json" / "report.dcm")), strict=True):
        low, high = item["volume_interval_ml"]
        half = 2.0 * item["volume_ml"] * item["mean_uncertainty"]
        assert (low, high) == pytest.approx((max(0.0, item["volume_ml"] - half), item["volume_ml"] + half))
        assert item["volume_interval_coverage"] == 0.9
        assert f"{low:.1f} – {high:.1f} (90%)" in table
        ends = {meaning(part): part.MeasuredValueSequence[0] for part in volume.ContentSequence}
        up = ends["+, range of upper measurement uncertainty"]
        down = ends["-, range of lower measurement uncertainty"]
        assert float(up.NumericValue) == pytest.approx(high - item["volume_ml"], abs=6e-4)
        assert float(down.NumericValue) == pytest.approx(item["volume_ml"] - low, abs=6e-4)
        assert {end.MeasurementUnitsCodeSequence[0].CodeValue for end in (up, down)} == {"ml"}


def test_without_calibration_the_interval_is_called_uncalibrated(study: Path, tmp_path: Path) -> None:
    table = segment(study, model_with(tmp_path / "model", None), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    assert "(uncalibrated)" in table
    assert {item["volume_interval_coverage"] for item in record["measurements"]} == {None}
    assert b"volume_interval=uncalibrated" in (tmp_path / "out" / "report.dcm").read_bytes()


def test_calibration_is_part_of_the_identity_and_one_of_another_model_is_told(study: Path, tmp_path: Path) -> None:
    records = {}
    foreign = calibration("f" * 64).as_json()
    for name, text in (("none", None), ("one", fitted(2.0)), ("two", fitted(3.0)), ("foreign", foreign)):
        out = tmp_path / name
        shown = segment(study, model_with(tmp_path / f"model {name}", text), out)
        records[name] = json.loads((out / "record.json").read_text(encoding="utf-8"))
        told = [note for note in records[name]["notes"] if "belongs to another model" in note]
        assert bool(told) == (name == "foreign")
        assert ("belongs to another model" in shown) == (name == "foreign")
    digests = {name: record["identity"]["settings_digest"] for name, record in records.items()}
    assert digests["foreign"] == digests["none"]
    assert len(set(digests.values())) == 3


def test_measurement_without_interval_has_none() -> None:
    plain: SegmentMeasurement = measure(one_segment(0.5))[0]
    assert plain.volume_interval_ml is None
