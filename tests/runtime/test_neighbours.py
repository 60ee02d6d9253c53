"""Neighbouring studies that overlap: the bytes of single runs, outcomes in order, bounds, and nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import worker_jobs
from tests.model_phantom import ModelPhantom
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from ucseg_runtime import neighbours
from ucseg_runtime.config import InferenceOptions, OutputOptions, SegEncoding
from ucseg_runtime.errors import InputError, NotDicomError, OutputError, OutputExistsError, SpacingError, UcsegError
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.neighbours import Outcome, Refused, Segmented, SeriesJob, segment_neighbours
from ucseg_runtime.publish import RECORD
from ucseg_runtime.series_pipeline import segment_series
from ucseg_runtime.worker import ChildTracebackError

INFERENCE = InferenceOptions(gate=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom"))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Four, of different sizes and patients' studies; the third is compressed."""
    root = tmp_path_factory.mktemp("studies")
    phantoms = [CtPhantom(shape=(12 + 4 * number, 40, 48), study=f"study {number}") for number in range(3)]
    phantoms.append(CtPhantom(shape=(10, 40, 48), study="compressed", transfer_syntax="1.2.840.10008.1.2.4.70"))
    for number, phantom in enumerate(phantoms):
        write_ct_series(root / str(number), phantom)
    return tuple(root / str(number) for number in (0, 1, 3, 2))


def jobs_for(sources: tuple[Path, ...], out: Path) -> list[SeriesJob]:
    return [SeriesJob(source, out / str(number)) for number, source in enumerate(sources, start=1)]


def run(jobs: list[SeriesJob], model: Model, outputs: OutputOptions | None = None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    segment_neighbours(jobs, model, INFERENCE, outputs or OutputOptions(), outcomes.append)
    return outcomes


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kinds(outcomes: list[Outcome]) -> list[tuple[int, str]]:
    return [(item.ordinal, "done" if isinstance(item, Segmented) else type(item.error).__name__) for item in outcomes]


def own_workers() -> list[int]:
    """Processes that this one has started as workers and that have not ended."""
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return [pid for pid in children if b"worker_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def assert_complete_or_absent(out: Path) -> None:
    """Every folder of results is finished, and nothing lies around."""
    for folder in out.iterdir() if out.is_dir() else ():
        assert (folder / RECORD).is_file(), [path.name for path in folder.iterdir()]
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "outputs",
    [
        OutputOptions(),
        OutputOptions(SegEncoding("fractional"), extras=frozenset({"nifti", "nrrd", "rtstruct", "preview"})),
    ],
    ids=["binary", "fractional with everything else"],
)
def test_every_file_is_that_of_a_run_alone(
    outputs: OutputOptions, studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    outcomes = run(jobs_for(studies, tmp_path / "together"), model, outputs)

    assert kinds(outcomes) == [(ordinal, "done") for ordinal in range(1, 5)]
    for job in jobs_for(studies, tmp_path / "alone"):
        alone = segment_series(job.source, job.folder, model, INFERENCE, outputs)
        assert content(job.folder) == content(tmp_path / "together" / job.folder.name)
        outcome = outcomes[int(job.folder.name) - 1]
        assert isinstance(outcome, Segmented)
        # In words, since figures that do not exist are NaN, which equals nothing once it came from another process.
        assert repr(outcome.result.measurements) == repr(alone.measurements)
        assert outcome.result.tiles == alone.tiles
        assert list(outcome.result.seconds) == list(alone.seconds)


def test_bad_studies_fail_with_their_own_errors_and_the_others_go_on(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    write_ct_series(tmp_path / "gap", CtPhantom(shape=(12, 40, 48)), omit=(5,))
    sources = (tmp_path / "empty", studies[0], tmp_path / "gap", studies[1])

    outcomes = run(jobs_for(sources, tmp_path / "out"), model)

    assert kinds(outcomes) == [(1, "NotDicomError"), (2, "done"), (3, "SpacingError"), (4, "done")]
    for outcome, kind in ((outcomes[0], NotDicomError), (outcomes[2], SpacingError)):
        assert isinstance(outcome, Refused)
        with pytest.raises(kind) as alone:
            segment_series(sources[outcome.ordinal - 1], tmp_path / "alone", model, INFERENCE, OutputOptions())
        assert outcome.error.as_json() == alone.value.as_json()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2", "4"]
    assert_complete_or_absent(tmp_path / "out")


def test_results_that_appear_meanwhile_fail_their_study_alone(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    foreign = tmp_path / "2" / "segmentation.dcm"
    finished: list[int] = []

    def plant(done: int, total: int) -> None:
        finished.extend([done] if done == total else [])
        if len(finished) == 2 and not foreign.exists():
            foreign.parent.mkdir()
            foreign.write_text("of somebody else")

    outcomes: list[Outcome] = []
    segment_neighbours(jobs_for(studies[:3], tmp_path), model, INFERENCE, OutputOptions(), outcomes.append, plant)

    assert kinds(outcomes) == [(1, "done"), (2, OutputExistsError.__name__), (3, "done")]
    assert content(tmp_path / "2") == {"segmentation.dcm": b"of somebody else"}


def test_at_most_one_study_is_read_ahead_and_one_is_being_written(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    events: list[str] = []

    def noted_jobs() -> Iterator[SeriesJob]:
        for job in jobs_for((*studies, *studies[:2]), tmp_path):
            events.append(f"read {job.folder.name}")
            yield job

    def networked(done: int, total: int) -> None:
        events.extend(["network"] if done == total else [])

    def reported(outcome: Outcome) -> None:
        events.append(f"done {outcome.ordinal}")

    segment_neighbours(noted_jobs(), model, INFERENCE, OutputOptions(), reported, networked)

    assert events == [
        *("read 1", "read 2", "network"),
        *("read 3", "network", "done 1"),
        *("read 4", "network", "done 2"),
        *("read 5", "network", "done 3"),
        *("read 6", "network", "done 4"),
        *("network", "done 5", "done 6"),
    ]


def test_everything_begun_is_reported_before_more_is_asked_for_where_none_was_at_hand(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    first, second, third = jobs_for(studies[:3], tmp_path)
    reported: list[int] = []
    when_asked_again: list[list[int]] = []

    def jobs() -> Iterator[SeriesJob | None]:
        yield first
        yield second
        yield None
        when_asked_again.append(list(reported))
        yield third

    segment_neighbours(jobs(), model, INFERENCE, OutputOptions(), lambda outcome: reported.append(outcome.ordinal))

    assert when_asked_again == [[1, 2]]
    assert reported == [1, 2, 3]
    assert_complete_or_absent(tmp_path)


def test_a_reading_process_that_dies_fails_its_study_alone(
    studies: tuple[Path, ...], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_read", worker_jobs.read_unless_doomed)

    outcomes = run(jobs_for((studies[0], tmp_path / worker_jobs.DOOMED, studies[1]), tmp_path / "out"), model)

    assert kinds(outcomes) == [(1, "done"), (2, InputError.__name__), (3, "done")]
    assert isinstance(outcomes[1], Refused)
    assert "that read the study was ended by signal 9 (SIGKILL)" in str(outcomes[1].error)
    assert not any(canary in str(outcomes[1].error).lower() for canary in PHI_CANARIES)


def test_a_writing_process_that_dies_fails_its_study_alone_and_leaves_no_file(
    studies: tuple[Path, ...], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "write_input", worker_jobs.write_unless_doomed)
    out = tmp_path / "out"
    jobs = [SeriesJob(studies[0], out / worker_jobs.DOOMED), SeriesJob(studies[1], out / "2")]

    outcomes = run(jobs, model)

    assert kinds(outcomes) == [(1, OutputError.__name__), (2, "done")]
    assert isinstance(outcomes[0], Refused)
    assert "wrote the results was ended by signal 9" in str(outcomes[0].error)
    assert outcomes[0].error.code == "UCSEG-E154", "not that of a disk that takes nothing any more"
    assert not (out / worker_jobs.DOOMED).exists() or not list((out / worker_jobs.DOOMED).iterdir())


def test_a_defect_stops_everything_and_is_raised_with_its_cause(
    studies: tuple[Path, ...], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_read", worker_jobs.read_with_a_defect)
    outcomes: list[Outcome] = []
    sources = (studies[0], tmp_path / worker_jobs.DOOMED, studies[1])

    with pytest.raises(KeyError) as caught:
        segment_neighbours(jobs_for(sources, tmp_path), model, INFERENCE, OutputOptions(), outcomes.append)

    assert isinstance(caught.value.__cause__, ChildTracebackError)
    assert "read_with_a_defect" in str(caught.value.__cause__)
    assert outcomes == []
    assert_complete_or_absent(tmp_path)
    assert own_workers() == []


def test_an_interruption_leaves_complete_results_or_none_and_no_process(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    def interrupt_while_the_first_is_written(done: int, total: int) -> None:
        if (tmp_path / "1").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_neighbours(
            jobs_for((*studies, *studies), tmp_path),
            model,
            INFERENCE,
            OutputOptions(),
            lambda outcome: None,
            interrupt_while_the_first_is_written,
        )

    assert_complete_or_absent(tmp_path)
    assert len(list(tmp_path.iterdir())) < 8
    assert own_workers() == []


def test_an_engine_that_cannot_be_opened_is_no_outcome_of_a_study(
    studies: tuple[Path, ...], model: Model, tmp_path: Path
) -> None:
    outcomes: list[Outcome] = []
    with pytest.raises(UcsegError, match="accuracy gate"):
        segment_neighbours(
            jobs_for(studies, tmp_path / "out"), model, InferenceOptions(), OutputOptions(), outcomes.append
        )
    assert outcomes == []
    assert not (tmp_path / "out").exists()


def test_a_memory_budget_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="memory budget"):
        segment_neighbours([], model, InferenceOptions(max_memory_mb=2000), OutputOptions(), lambda outcome: None)


def test_no_jobs_are_done_at_once(model: Model) -> None:
    assert run([], model) == []
