"""What ``ucseg segment`` leaves: objects as they were asked for, a table or one JSON document, the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.command_line import EXTRAS, assert_no_patient_data, run
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.publish import RESULT_NAMES, TIMELINE


def test_segment_writes_every_object_and_one_table(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, *EXTRAS)

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted({*RESULT_NAMES} - {TIMELINE})
    assert "class 1" in result.stdout
    assert "1 files left out: UCSEG-E101" in result.stderr
    assert_no_patient_data(result.output)


def test_segment_json_is_one_document_with_measurements(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--json")

    report = json.loads(result.stdout)
    assert [item["name"] for item in report["measurements"]] == ["class 1", "class 2"]
    assert report["engine"]["name"] == "openvino"
    assert_no_patient_data(result.output)


@pytest.mark.parametrize("seg_type", ["binary", "labelmap", "fractional"])
def test_segment_writes_the_seg_type_that_was_asked_for(
    seg_type: str, study: Path, model: Path, tmp_path: Path
) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--seg-type", seg_type)

    assert result.exit_code == 0, result.output
    assert dcmread(tmp_path / "out" / "segmentation.dcm").SegmentationType == seg_type.upper()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"viewer": "any", "seg_type": "binary", "compression": "none", "empty_frames": "omit"}),
        (
            ("--viewer", "legacy-pacs"),
            {"viewer": "legacy-pacs", "seg_type": "binary", "compression": "none", "empty_frames": "keep"},
        ),
        (
            ("--viewer", "ohif", "--seg-type", "labelmap", "--compression", "jpeg-ls", "--uncertainty", "seg"),
            {"viewer": "ohif", "seg_type": "labelmap", "compression": "jpeg-ls", "uncertainty": "seg"},
        ),
    ],
)
def test_record_says_what_was_chosen_for_the_viewer(
    options: tuple[str, ...], expected: dict[str, str], study: Path, model: Path, tmp_path: Path
) -> None:
    assert run("segment", study, "--out", tmp_path / "out", "--model", model, *options).exit_code == 0

    settings = json.loads((tmp_path / "out" / "record.json").read_text())["settings"]
    assert settings.items() >= expected.items()


def test_segment_again_is_refused_then_overwrites_with_the_same_bytes(study: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("segment", study, "--out", out, "--model", model).exit_code == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}

    refused = run("segment", study, "--out", out, "--model", model)
    assert refused.exit_code == 6
    assert "--overwrite" in refused.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    assert run("segment", study, "--out", out, "--model", model, "--overwrite").exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_segment_of_a_volume_smaller_than_a_tile_is_padded(model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom(shape=(4, 12, 14)))

    result = run("segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output


def test_compiled_models_are_kept_only_when_asked_for(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCSEG_CACHE", str(tmp_path / "cache"))
    assert run("segment", study, "--out", tmp_path / "out", "--model", model).exit_code == 0
    assert not (tmp_path / "cache").exists()
    first = (tmp_path / "out" / "segmentation.dcm").read_bytes()
    for _ in range(2):
        assert (
            run("segment", study, "--out", tmp_path / "out", "--model", model, "--overwrite", "--cache").exit_code == 0
        )
        assert len(list((tmp_path / "cache" / "compiled").iterdir())) == 1
        assert (tmp_path / "out" / "segmentation.dcm").read_bytes() == first
