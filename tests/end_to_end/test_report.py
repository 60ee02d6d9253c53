"""``--report`` from the command line: part of the results like every other file, and free of what people are called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from tests.command_line import run
from tests.nifti_images import write_image
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from tests.report_phantom import ParsedPage
from ucseg_runtime.publish import PAGE, RECORD, THUMBNAIL

HOSTILE = "<script>window.owned = 1</script>"
PHANTOM = CtPhantom(shape=(12, 40, 48))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def describe(index: int, dataset: FileDataset) -> None:
        dataset.SeriesDescription = HOSTILE
        dataset.PatientComments = f"canary {HOSTILE}"

    folder = tmp_path_factory.mktemp("canarystudy")
    write_ct_series(folder, PHANTOM, edit=describe)
    return folder


@pytest.fixture(scope="module")
def out(study: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    result = run("segment", study, "--out", folder, "--model", model, "--report", "--subnet-agreement")
    assert result.exit_code == 0, result.output
    return folder


def test_record_holds_the_digest_of_the_report(out: Path) -> None:
    outputs = json.loads((out / RECORD).read_text())["outputs"]

    for name in (PAGE, THUMBNAIL):
        assert outputs[name]["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert (out / name).stat().st_mode & 0o777 == 0o600


def test_figures_in_the_report_are_those_of_the_record(out: Path) -> None:
    record = json.loads((out / RECORD).read_text())
    page = ParsedPage((out / PAGE).read_bytes())
    values = [json.loads(value) for value in page.attributes("data", "value")]

    for item in record["measurements"]:
        names = ("volume_ml", "largest_diameter_mm", "mean_uncertainty", "uncertainty_p95", "between_subnet_dice")
        assert [item[name] for name in names if item[name] not in values] == []
    digests = [item["sha256"] for name, item in record["outputs"].items() if name not in {PAGE, THUMBNAIL}]
    for text in (record["series_uid"], record["input"]["files_sha256"], record["identity"]["model_digest"], *digests):
        assert text in page.text


def test_nothing_that_people_wrote_or_are_called_is_in_the_report(out: Path) -> None:
    page = (out / PAGE).read_bytes().decode().lower()

    assert [canary for canary in (*PHI_CANARIES, "window.owned") if canary in page] == []


def test_same_run_writes_the_same_report(out: Path, study: Path, model: Path, tmp_path: Path) -> None:
    again = run("segment", study, "--out", tmp_path / "out", "--model", model, "--report", "--subnet-agreement")

    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / PAGE).read_bytes() == (out / PAGE).read_bytes()
    assert (tmp_path / "out" / RECORD).read_bytes() == (out / RECORD).read_bytes()


def test_image_without_a_study_has_a_report_too(model: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.nii.gz", PHANTOM)

    result = run("segment", image, "--out", tmp_path / "out", "--model", model, "--report")

    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["image_sha256"] in ParsedPage((tmp_path / "out" / PAGE).read_bytes()).text


def test_without_the_option_there_is_none(study: Path, model: Path, tmp_path: Path) -> None:
    result = run("segment", study, "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / PAGE).exists()
    assert not (tmp_path / "out" / THUMBNAIL).exists()
