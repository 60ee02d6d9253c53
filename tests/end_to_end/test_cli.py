"""The command line: exit codes, machine-readable output, and nothing left behind after an error."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from typer.testing import CliRunner, Result

from tests.model_phantom import ModelPhantom
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from tests.proof_phantom import proof, proven, write_proofs
from ucseg_runtime.cli.app import app
from ucseg_runtime.cli.reporting import print_table
from ucseg_runtime.publish import RESULT_NAMES, TIMELINE
from ucseg_runtime.selftest import SelfTestResult

EXTRAS = ("--rtstruct", "--nifti", "--nrrd", "--preview", "--report")
PHANTOM = CtPhantom(shape=(20, 40, 48))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proven(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_ct_series(tmp_path / "study" / "nested", PHANTOM)
    (tmp_path / "study" / "notes.txt").write_text("not an image")
    return tmp_path / "study"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_no_patient_data(text: str) -> None:
    assert not [canary for canary in PHI_CANARIES if canary in text.lower()]


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


def test_a_compression_that_the_encoding_cannot_have_is_a_usage_error(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--compression", "rle")

    assert result.exit_code == 2
    assert "possible: none, jpeg2000" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["segment", "batch"])
@pytest.mark.parametrize("option", [("--tls-ca", "ca.pem"), ("--token-file", "token"), ("--shared-memory",)])
def test_options_for_a_server_without_one_are_a_usage_error(
    command: str, option: tuple[str, ...], study: Path, model: Path, tmp_path: Path
) -> None:
    result = run(command, study, "--out", tmp_path / "out", "--model", model, *option)

    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"Invalid value for {option[0]}: it is for a Triton server, and needs --engine triton" in said


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


def test_segment_with_a_changed_model_exits_with_4(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom().write(tmp_path / "model")
    content = bytearray((folder / "merged.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "merged.onnx").write_bytes(content)

    result = run("segment", study, "--out", tmp_path / "out", "--model", folder)

    assert result.exit_code == 4
    assert "ArtifactMismatchError" in result.stderr
    assert not (tmp_path / "out").exists()


def test_plan_predicts_the_tiles_that_a_run_has(study: Path, model: Path, tmp_path: Path) -> None:
    planned = json.loads(run("plan", study, "--model", model, "--json").stdout)
    seen = run("segment", study, "--out", tmp_path / "out", "--model", model).stderr

    assert f"tiles: {planned['tiles']} of {planned['tiles']}" in seen
    assert planned["network_seconds"] == pytest.approx(0.1 * planned["tiles"])
    assert planned["source_shape"] == list(PHANTOM.shape)
    assert planned["engine"]["name"] == "openvino"
    assert "peak memory" in run("plan", study, "--model", model).stdout


def test_memory_budget_changes_the_plan_and_not_a_byte_of_the_results(study: Path, model: Path, tmp_path: Path) -> None:
    def planned(*arguments: object) -> dict[str, float]:
        return json.loads(run("plan", study, "--model", model, "--threads", 2, "--json", *arguments).stdout)

    free, single = planned(), planned("--mode", "latency")
    assert (free["parallel_tiles"], single["parallel_tiles"]) == (2, 1)
    budget = int(single["peak_memory_mb"]) + 1
    assert budget < free["peak_memory_mb"]
    assert planned("--max-memory", budget)["parallel_tiles"] == 1
    outputs = {}
    for name, arguments in {
        "free": [],
        "bounded": ["--max-memory", budget],
        "latency": ["--mode", "latency"],
        "throughput": ["--mode", "throughput", "--threads", 4],
    }.items():
        out = tmp_path / name
        assert run("segment", study, "--out", out, "--model", model, "--threads", 2, *arguments).exit_code == 0
        outputs[name] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(found == outputs["free"] for found in outputs.values())


def test_budget_that_nothing_fits_is_refused_before_pixels_are_read(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucseg_runtime.series_steps.read_voxels", lambda series: pytest.fail("pixels were read"))
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--max-memory", 100, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E127"
    assert not (tmp_path / "out").exists()
    assert run("plan", study, "--model", model, "--max-memory", 100).exit_code == 3


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


def test_a_verbose_command_leaves_the_log_of_its_process_as_it_was(study: Path, model: Path) -> None:
    level = logging.getLogger("ucseg_runtime").level
    assert run("--verbose", "plan", study, "--model", model, "--no-gate").exit_code == 0
    assert logging.getLogger("ucseg_runtime").level == level


def test_plan_without_gate_knows_no_time(study: Path, model: Path) -> None:
    planned = json.loads(run("plan", study, "--model", model, "--no-gate", "--json").stdout)
    assert planned["network_seconds"] is None
    assert "not known" in run("plan", study, "--model", model, "--no-gate").stdout


def test_segment_with_an_engine_that_failed_the_gate_exits_with_4(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")
    write_proofs(folder, proof(dice=0.5))

    refused = run("segment", study, "--out", tmp_path / "out", "--model", folder, "--json")

    assert refused.exit_code == 4
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["error"]) == ("UCSEG-E132", "AccuracyGateError")
    assert "Dice of class 1 0.5000, at least 0.9995 needed" in error["message"]
    assert not (tmp_path / "out").exists()


def test_no_gate_is_recorded_in_every_output(study: Path, tmp_path: Path) -> None:
    folder = ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")
    out = tmp_path / "out"

    result = run("segment", study, "--out", out, "--model", folder, "--no-gate", "--json")

    assert json.loads(result.stdout)["engine"]["reason"] == "the accuracy gate was skipped"
    assert json.loads((out / "record.json").read_text())["identity"]["engine"]["proven"] is False
    for name in ("segmentation.dcm", "uncertainty.dcm", "report.dcm"):
        assert "no accuracy gate" in str(dcmread(out / name).SoftwareVersions), name


def test_passed_gate_is_said_with_its_reason(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--json")

    engine = json.loads(result.stdout)["engine"]
    assert (engine["name"], engine["proven"], engine["reason"]) == (
        "openvino",
        True,
        "passed the accuracy gate, 0.100 s a tile",
    )
    assert "gate" not in str(dcmread(tmp_path / "out" / "segmentation.dcm").SoftwareVersions)


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


def test_segment_of_a_volume_smaller_than_a_tile_is_padded(model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom(shape=(4, 12, 14)))

    result = run("segment", tmp_path / "study", "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output


def test_segment_of_an_unknown_series_exits_with_3(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model, "--series", "1.2.3")

    assert result.exit_code == 3
    assert "SeriesSelectionError" in result.stderr


def test_inspect_says_which_series_is_used_and_why_not_the_other(study: Path, model: Path) -> None:
    write_ct_series(study / "short", CtPhantom(shape=(5, 40, 48), series_number=2))

    result = run("inspect", study, "--model", model, "--json")

    assert result.exit_code == 0, result.output
    verdicts = {row["files"]: (row["verdict"], row["reason"]) for row in json.loads(result.stdout)["series"]}
    assert verdicts[20][0] == "used"
    assert verdicts[5][0] == "rejected"
    assert "fewer slices" in verdicts[5][1]
    assert_no_patient_data(result.output)


def test_inspect_gives_every_series_its_own_reason_and_the_exit_code_of_the_input(model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "gap", PHANTOM, omit=(7,))
    write_ct_series(tmp_path / "mr", CtPhantom(shape=(5, 40, 48), series_number=2, modality="MR"))

    result = run("inspect", tmp_path, "--model", model, "--json")

    assert result.exit_code == 3
    reasons = {row["modality"]: row["reason"] for row in json.loads(result.stdout)["series"]}
    assert "5.00 mm apart" in reasons["CT"]
    assert "mm apart" not in reasons["MR"]
    assert run("inspect", tmp_path, "--model", model).exit_code == 3


def test_models_lists_classes_and_digest_of_a_given_model(model: Path) -> None:
    result = run("models", "--model", model, "--json")

    (listed,) = json.loads(result.stdout)["models"]
    assert [item["name"] for item in listed["classes"]] == ["class 1", "class 2"]
    assert len(listed["digest"]) == 64


def test_doctor_passes_its_self_test_on_every_engine() -> None:
    result = run("doctor", "--json")

    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {check["engine"] for check in report["self_test"]} >= {"openvino", "onnxruntime"}
    assert all(check["passed"] for check in report["self_test"])


def test_doctor_with_a_wrong_answer_prints_one_document_and_exits_with_5(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SelfTestResult("openvino", "f32", passed=False, detail="7 voxels with a wrong label")
    monkeypatch.setattr("ucseg_runtime.selftest.run_self_test", lambda: (wrong,))

    result = run("doctor", "--json")

    assert result.exit_code == 5
    assert json.loads(result.stdout)["error"]["code"] == "UCSEG-E140"


def test_tables_show_square_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("extras [a]", ("hint",), [("pip install 'ucseg[onnxruntime]'",)])

    assert "ucseg[onnxruntime]" in capsys.readouterr().out


def test_segment_stopped_by_a_signal_leaves_nothing_and_says_so(study: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()", "segment", study, "--out", out]
    process = subprocess.Popen([*command, "--model", model, "--json"], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob(".ucseg-staging-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 143
    assert json.loads(stdout)["error"]["code"] == "UCSEG-E198"
    assert list(out.parent.iterdir()) == []


def test_a_reader_that_closes_the_output_is_no_defect(model: Path) -> None:
    command = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()", "models", "--model", model]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 141
    assert stderr == ""


def test_a_defect_is_one_line_with_exit_code_1_and_no_value(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise KeyError("Canaryname^Phantom")

    monkeypatch.setattr("ucseg_runtime.series_steps.measure", explode)

    result = run("segment", study, "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    assert_no_patient_data(result.output)
    assert not (tmp_path / "out").exists()
