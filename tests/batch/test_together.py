"""Runners side by side: none waits for another with leases in its hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.batch.exports import write_export
from ucseg_runtime.batch import run as run_module
from ucseg_runtime.batch.export_index import index_export
from ucseg_runtime.batch.leases import held_leases
from ucseg_runtime.batch.plan import BatchOptions, BatchPlan, SeriesOutcome, plan_batch
from ucseg_runtime.batch.run import STATE_FOLDER, run_batch
from ucseg_runtime.batch.runners import Finished
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import OutputError, UcsegError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.neighbours import DIED_WRITING, SeriesJob
from ucseg_runtime.segmentation import EngineInfo

INFERENCE = InferenceOptions(engine="openvino", precision="f32")


def plan_of(export: Path, out: Path, model: Path) -> BatchPlan:
    engine = EngineInfo("fake", "0", "f32", "none")
    return plan_batch(index_export(export), out, load_model(model), INFERENCE, OutputOptions(), BatchOptions(), engine)


class NotingRunner:
    """Notes what it is handed, and finishes a job as soon as none is at hand."""

    def __init__(self) -> None:
        self.handed: list[str] = []

    def engine(self) -> EngineInfo | None:
        return None

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        in_work: list[int] = []
        for job in jobs:
            if job is not None:
                in_work.append(len([item for item in self.handed if item != "none"]) + 1)
                self.handed.append(job.folder.name)
                continue
            self.handed.append("none")
            while in_work:
                finished(in_work.pop(), None)
        while in_work:
            finished(in_work.pop(), None)


def test_runner_with_work_in_its_hand_does_not_wait_for_another_s_series(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(write_export(tmp_path / "in", 2), tmp_path / "out", model)
    mine, theirs = plan.series
    told: list[SeriesOutcome] = []
    runner = NotingRunner()
    with held_leases(tmp_path / "out" / STATE_FOLDER / "leases", 60) as other:
        other.claim(plan.places.key_of(theirs))

        def let_go(_: float) -> None:
            assert [outcome.series for outcome in told] == [mine], "own work is finished before there is any waiting"
            other.release(plan.places.key_of(theirs))

        monkeypatch.setattr(run_module.time, "sleep", let_go)
        run_batch(plan, runner, told.append)

    names = [plan.places.series_name(series) for series in (mine, theirs)]
    assert runner.handed == [names[0], "none", names[1]]
    assert [outcome.state for outcome in told] == ["segmented", "segmented"]


class FailingOnce:
    """Fails the first job with an error, and finishes the others."""

    def __init__(self, error: UcsegError) -> None:
        self._error = error

    def engine(self) -> EngineInfo | None:
        return None

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        for ordinal, _ in enumerate(jobs, start=1):
            finished(ordinal, self._error if ordinal == 1 else None)


def test_writer_that_died_costs_one_series_and_a_full_disk_ends_the_batch(tmp_path: Path, model: Path) -> None:
    plan = plan_of(write_export(tmp_path / "in", 3), tmp_path / "out", model)
    told: list[SeriesOutcome] = []

    run_batch(plan, FailingOnce(OutputError("the writer died.", code=DIED_WRITING)), told.append)
    assert [outcome.state for outcome in told] == ["failed", "segmented", "segmented"]

    with pytest.raises(OutputError, match="no space"):
        run_batch(plan, FailingOnce(OutputError("no space.")), told.append)
