"""What ``ucseg segment`` refuses: an exit code that says why, and no output folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from tests.command_line import EXTRAS, assert_no_patient_data, run
from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series

PHANTOM = CtPhantom(shape=(20, 40, 48))


def test_a_compression_that_the_encoding_cannot_have_is_a_usage_error(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--compression", "rle")

    assert result.exit_code == 2
    assert "possible: none, jpeg2000" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_segment_without_dicom_exits_with_3_and_leaves_no_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "canaryfile.txt").write_text("nothing")

    result = run("segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model, "--json")

    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E101"
    assert not (tmp_path / "out").exists()
    assert_no_patient_data(result.output)


def test_segment_with_a_missing_slice_names_the_gap_and_exits_with_3(model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", PHANTOM, omit=(7,))

    result = run("segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 3
    assert "SpacingError" in result.stderr
    assert "5.00 mm" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_segment_of_an_unknown_series_exits_with_3(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--series", "1.2.3")

    assert result.exit_code == 3
    assert "SeriesSelectionError" in result.stderr


def test_segment_with_a_changed_model_exits_with_4(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom().write(tmp_path / "model")
    content = bytearray((folder / "merged.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "merged.onnx").write_bytes(content)

    result = run("segment", study, "--out", tmp_path / "out", "--model", folder)

    assert result.exit_code == 4
    assert "ArtifactMismatchError" in result.stderr
    assert not (tmp_path / "out").exists()


def test_segment_into_a_path_that_is_a_file_exits_with_6(study: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")

    result = run("segment", study, "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 6
    assert (tmp_path / "out").read_text() == "a file"


def test_segment_where_nothing_can_be_written_exits_with_6(study: Path, model: Path) -> None:
    # Not even the superuser can make a folder there.
    result = run("segment", study, "--out", "/proc/ucseg-output", "--model", model)

    assert result.exit_code == 6
    assert "OutputError" in result.stderr


@pytest.mark.parametrize("sop_class", ["SegmentationStorage", "ParametricMapStorage", "RTStructureSetStorage"])
def test_an_object_that_differs_when_read_back_exits_with_6_and_nothing_is_published(
    sop_class: str, study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as = Dataset.save_as

    def save_misplaced(self: Dataset, path: Path, **options: bool) -> None:
        if self.SOPClassUID == getattr(uid, sop_class):
            for group in self.get("PerFrameFunctionalGroupsSequence", ()):
                x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
                group.PlanePositionSequence[0].ImagePositionPatient = [x + 100.0, y, z]
            for region in self.get("ROIContourSequence", ()):
                for contour in region.get("ContourSequence", ()):
                    contour.ContourData = [-float(value) for value in contour.ContourData]
        save_as(self, path, **options)

    monkeypatch.setattr(Dataset, "save_as", save_misplaced)

    result = run("segment", study, "--out", tmp_path / "out", "--model", model, *EXTRAS)

    assert result.exit_code == 6, result.output
    assert "SegWriteError" in result.stderr
    assert not (tmp_path / "out").exists()
    assert_no_patient_data(result.output)


@pytest.mark.parametrize("command", ["segment", "batch"])
@pytest.mark.parametrize("option", [("--tls-ca", "ca.pem"), ("--token-file", "token"), ("--shared-memory",)])
def test_options_for_a_server_without_one_are_a_usage_error(
    command: str, option: tuple[str, ...], study: Path, model: Path, tmp_path: Path
) -> None:
    result = run(command, study, "--out", tmp_path / "out", "--model", model, *option)

    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"Invalid value for {option[0]}: it is for a Triton server, and needs --engine triton" in said
