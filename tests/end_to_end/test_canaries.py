"""Patient data stay where they belong: every text of a study is a token that is looked for in all that a run leaves.

Tokens stand in every text attribute of the patient, study, series, equipment and visit groups, in sequences, in private
elements, in dates of birth, and in the names of files and folders. They may turn up in the DICOM objects, in the very
attributes that results share with their study, and nowhere else.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from tests.bad_inputs import BAD_INPUTS, BadInput
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.cli.app import app

PHANTOM = CtPhantom(shape=(20, 40, 48))
BIRTH_DATE = "19510203"
TOKEN = re.compile(rb"(?i)qz[0-9]{4}qz|canary|19510203|1951-02-03")
"""Also matches the canaries that the phantom brings itself."""

_TEXT_VRS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC"}
_GROUPS = {0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040}
_OBJECTS = ("segmentation.dcm", "uncertainty.dcm", "report.dcm")
_COMMAND = [sys.executable, "-c", "from ucseg_runtime.cli.app import main; main()"]


def token(number: int) -> str:
    return f"QZ{number:04d}QZ"


def mark(_index: int, dataset: FileDataset) -> None:
    """Put a token wherever text is allowed."""
    for number, (tag, (vr, *_)) in enumerate(sorted(DicomDictionary.items())):
        if vr in _TEXT_VRS and tag >> 16 in _GROUPS:
            dataset.add_new(tag, vr, token(number % 10_000))
    dataset.PatientBirthDate = BIRTH_DATE
    identifiers, request = Dataset(), Dataset()
    identifiers.PatientID, identifiers.IssuerOfPatientID = token(9001), token(9002)
    request.RequestedProcedureID, request.ScheduledProcedureStepDescription = token(9003), token(9004)
    dataset.OtherPatientIDsSequence, dataset.RequestAttributesSequence = Sequence([identifiers]), Sequence([request])
    private = dataset.private_block(0x0009, token(9005), create=True)
    private.add_new(0x01, "LO", token(9006))
    private.add_new(0x02, "UN", token(9007).encode())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / token(9100) / token(9101)
    write_ct_series(folder, PHANTOM, edit=mark, prefix=token(9102))
    (folder / f"{token(9103)}.txt").write_text(token(9104))
    return folder


def tokens_in(content: bytes | str) -> set[bytes]:
    return set(TOKEN.findall(content.encode() if isinstance(content, str) else content))


def tokens_in_folder(folder: Path) -> dict[str, set[bytes]]:
    """Tokens in names and contents of all files, of compressed ones also in what they hold."""
    found = {}
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # a temporary file that went while it was looked at
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        found[path.name] = tokens_in(content) | tokens_in(path.name)
    return {name: tokens for name, tokens in found.items() if tokens}


def said_by(*arguments: object) -> tuple[str, int]:
    result = CliRunner().invoke(app, ["-v", *map(str, arguments)])
    return result.output + repr(result.exception), result.exit_code


def test_the_study_is_full_of_tokens(study: Path) -> None:
    """The premise of this module."""
    content = next(study.glob("*.dcm")).read_bytes()
    assert len(tokens_in(content)) > 200


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--why",), ("--why", "--json")], ids=" ".join)
def test_inspecting_shows_no_patient_data(
    study: Path, model: Path, arguments: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said, status = said_by("inspect", study, "--model", model, *arguments)

    assert status == 0
    assert not tokens_in(said + caplog.text)


def test_a_run_leaves_patient_data_in_the_shared_attributes_of_its_objects_alone(
    study: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    said, status = said_by("segment", study, "--out", out, "--model", model, "--nifti", "--report", "--json")

    assert status == 0, said
    assert not tokens_in(said + caplog.text)
    assert set(tokens_in_folder(out)) <= set(_OBJECTS)
    source = pydicom.dcmread(next(study.glob("*.dcm")))
    for name in _OBJECTS:
        for path, value in texts_of(pydicom.dcmread(out / name)):
            if tokens_in(value):
                keyword = path.removeprefix("ContributingEquipmentSequence.")
                assert value == texts_by_keyword(source)[keyword], f"{path} of {name}"


def texts_of(dataset: Dataset, place: str = "") -> Iterator[tuple[str, str]]:
    """Path by keywords and value as text of every element, within sequences too."""
    for element in dataset:
        path = f"{place}{element.keyword or element.tag}"
        if element.VR == "SQ":
            for item in element.value:
                yield from texts_of(item, f"{path}.")
        elif element.keyword != "PixelData":
            yield path, str(element.value)


def texts_by_keyword(dataset: Dataset) -> dict[str, str]:
    return dict(texts_of(dataset))


@pytest.mark.parametrize("bad", {bad.code: bad for bad in BAD_INPUTS}.values(), ids=lambda bad: bad.name)
def test_a_refused_input_is_explained_without_patient_data(
    bad: BadInput, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / token(9100)
    folder.mkdir()
    written = bad.write(folder)
    source = written if isinstance(written, Path) else folder

    said, status = said_by("segment", source, "--out", tmp_path / "out", "--model", model, "--json")
    shown, _ = said_by("inspect", source, "--model", model)

    assert status == 3, said
    assert bad.code in said
    assert not tokens_in(said + shown + caplog.text)
    assert not (tmp_path / "out").exists()


def _fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(f"what a library says about {token(9200)}")


@pytest.mark.parametrize(
    "step",
    [
        "series_pipeline.open_backend",
        "series_steps.segment_volume",
        "series_steps.montage_png",
        "dicom.seg_writer.save",
    ],
)
def test_a_failure_in_any_stage_is_told_without_the_words_of_libraries(
    step: str,
    study: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(f"ucseg_runtime.{step}", _fail)

    said, status = said_by("segment", study, "--out", tmp_path / "out", "--model", model)

    assert status != 0
    assert not tokens_in(said.replace(f"RuntimeError('what a library says about {token(9200)}')", "") + caplog.text)
    assert not (tmp_path / "out").exists()


def test_several_inputs_are_told_apart_without_their_names(study: Path, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / token(9105)
    write_ct_series(bad, PHANTOM, edit=mark, omit=(7,))
    said, status = said_by("segment", study, bad, "--out", tmp_path / "out", "--model", model)

    assert status == 7, said
    assert not tokens_in(said)
    assert set(tokens_in_folder(tmp_path / "out")) <= set(_OBJECTS)


def _started(tmp_path: Path, *arguments: object, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    for name in ("temporary", "working", "home"):
        (tmp_path / name).mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path / "home")}
    environment |= {"PYTHONWARNINGS": "always", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [*_COMMAND, "-v", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=tmp_path / "working",
        preexec_fn=before,  # noqa: PLW1509  (nothing but a limit is set there)
    )


def test_temporary_folders_hold_no_patient_data_during_and_after_a_run(
    study: Path, model: Path, tmp_path: Path
) -> None:
    process = _started(tmp_path, "segment", study, "--out", tmp_path / "out", "--model", model, "--cache")
    seen: dict[str, set[bytes]] = {}
    while process.poll() is None:
        seen |= tokens_in_folder(tmp_path / "temporary")
        time.sleep(0.02)

    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert not tokens_in(said)
    assert not seen
    for name in ("temporary", "working", "home"):
        assert not tokens_in_folder(tmp_path / name)


def test_a_crash_dumps_no_memory(study: Path, model: Path, tmp_path: Path) -> None:
    """Memory of a run holds the headers; a native library that crashes must not put them on the disk."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most == 0:
        pytest.fail("this machine forbids core files, so that nothing can be tested here")

    def allow_core_files() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    out = tmp_path / "out"
    process = _started(tmp_path, "segment", study, "--out", out, "--model", model, before=allow_core_files)
    while process.poll() is None and not list(out.glob(".ucseg-staging-*")):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSEGV)
    _, status = os.waitpid(process.pid, 0)  # `Popen.wait` does not say whether there was a core file
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()

    assert process.returncode == -signal.SIGSEGV
    assert not os.WCOREDUMP(status)
    assert not tokens_in_folder(tmp_path / "working")
