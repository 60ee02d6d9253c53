"""``ucseg-train`` parses, calls one function, prints; errors become a line and an exit code."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.training_phantom import block_case
from ucseg_runtime.errors import InputError
from ucseg_training import demo_training
from ucseg_training import evaluate as evaluation
from ucseg_training.cli.app import app
from ucseg_training.data import patient_a
from ucseg_training.demo_training import DemoSchedule
from ucseg_training.errors import TrainingError
from ucseg_training.scoring import ScoreRow

Arguments = tuple[object, ...]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Arguments]:
    """What `train_demo` was called with; it logs a line and trains nothing."""
    calls: list[Arguments] = []

    def train_demo(folder: Path, *arguments: object, observers: object) -> Path:
        calls.append((folder, *arguments))
        logging.getLogger("ucseg_training.trainer").info("step %d", 50)
        return folder / "trio.safetensors"

    monkeypatch.setattr(demo_training, "train_demo", train_demo)
    return calls


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the cases that were evaluated; each scores 0.5."""
    calls: list[list[str]] = []

    def evaluate(_: Path, cases: list) -> list[ScoreRow]:
        calls.append([case.name for case in cases])
        return [ScoreRow(case.name, "liver", "fused", {"dice": 0.5, "hd95_mm": math.nan}) for case in cases]

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(demo_training, "prepared_cases", lambda _: tuple(block_case(name) for name in "BCD"))
    monkeypatch.setattr(patient_a, "patient_a", lambda: block_case("A"))
    return calls


def _fail(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def test_help_names_every_command() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "run", "evaluate", "study", "import", "emit"))


def test_demo_trains_with_the_defaults_and_prints_the_checkpoint(tmp_path: Path, trained: list[Arguments]) -> None:
    out = tmp_path / "runs" / "demo"
    result = _run("demo", "--out", out)
    assert result.exit_code == 0, result.output
    assert trained == [(out, DemoSchedule(), None, 42)]
    assert result.stdout.strip() == str(out / "trio.safetensors")


def test_demo_passes_its_options_on(tmp_path: Path, trained: list[Arguments]) -> None:
    threads = torch.get_num_threads()
    try:
        options = (
            "--steps",
            7,
            "--stop-after",
            6,
            "--settle-steps",
            5,
            "--leave-out",
            "C",
            "--seed",
            3,
            "--threads",
            1,
        )
        assert _run("demo", "--out", tmp_path, *options).exit_code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert trained == [(tmp_path, DemoSchedule(7, 6, 5), "C", 3)]


def test_log_of_a_run_lies_in_its_folder_and_a_continued_run_adds_to_it(
    tmp_path: Path, trained: list[Arguments]
) -> None:
    for _ in range(2):
        assert _run("demo", "--out", tmp_path).exit_code == 0
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.endswith(" step 50") for line in lines] == [True, True]
    assert logging.getLogger("ucseg_training").handlers == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("demo", "--out", "x", "--leave-out", "A"), id="test patient left out"),
        pytest.param(("demo", "--out", "x", "--leave-out", "lung1"), id="unlabelled patient left out"),
        pytest.param(("demo", "--out", "x", "--steps", 0), id="no steps"),
        pytest.param(("demo", "--out", "x", "--seed", -1), id="negative seed"),
        pytest.param(("demo",), id="no folder"),
        pytest.param(("evaluate", "x.safetensors"), id="no patient"),
        pytest.param(("evaluate", "x.safetensors", "--patient", "E"), id="unknown patient"),
        pytest.param(("evaluate", "x.safetensors", "--patient", "B", "--patient", "lung1"), id="unlabelled patient"),
    ],
)
def test_wrong_use_ends_with_code_2_before_anything_is_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[Arguments],
    evaluated: list[list[str]],
    arguments: Arguments,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(*arguments).exit_code == 2
    assert trained == evaluated == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (TrainingError("step 3: the loss is not finite.", hint="Lower it."), 4, "UCSEG-E160 TrainingError: step 3: "),
        (InputError("pip could not fetch it."), 3, "UCSEG-E101 InputError: pip could not fetch it."),
        (KeyboardInterrupt(), 130, "UCSEG-E198 "),
    ],
    ids=["diverged", "no images", "interrupted"],
)
def test_error_becomes_one_line_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int, line: str
) -> None:
    monkeypatch.setattr(demo_training, "train_demo", _fail(error))
    result = _run("demo", "--out", tmp_path)
    assert result.exit_code == exit_code
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    assert logging.getLogger("ucseg_training").handlers == []


def test_evaluate_prints_one_json_object_per_row(evaluated: list[list[str]]) -> None:
    result = _run("evaluate", "x.safetensors", "--patient", "B", "--patient", "D")
    assert result.exit_code == 0, result.output
    assert evaluated == [["B", "D"]]
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"case": name, "segment": "liver", "output": "fused", "dice": 0.5, "hd95_mm": None} for name in "BD"
    ]


def test_evaluating_patient_a_alone_prepares_no_other_patient(
    monkeypatch: pytest.MonkeyPatch, evaluated: list[list[str]]
) -> None:
    monkeypatch.setattr(demo_training, "prepared_cases", _fail(AssertionError("not to be read")))
    assert _run("evaluate", "x.safetensors", "--patient", "A").exit_code == 0
    assert evaluated == [["A"]]


def test_patient_a_is_read_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, evaluated: list[list[str]]
) -> None:
    monkeypatch.setattr(patient_a, "patient_a", _fail(AssertionError("not to be read")))
    assert _run("evaluate", "x.safetensors", "--patient", "C").exit_code == 0
    assert evaluated == [["C"]]


def test_checkpoint_that_cannot_be_used_ends_with_code_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_training, "prepared_cases", lambda _: (block_case("B"),))
    path = tmp_path / "canary.safetensors"
    path.write_bytes(b"not a checkpoint")
    result = _run("evaluate", path, "--patient", "B")
    assert result.exit_code == 4
    assert result.stderr.startswith("UCSEG-E130 ModelError: the checkpoint cannot be read")
    assert "canary" not in result.stderr
    assert result.stdout == ""
