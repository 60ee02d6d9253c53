"""The far end of a batch on a cluster, without one: called from threads, as Ray calls it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batch.exports import TINY, write_export, write_model
from tests.phantoms import write_ct_series
from ucseg_runtime import neighbours
from ucseg_runtime.batch.actor import AHEAD, ActorSetup, Broken, SeriesActor, digest_of_secret
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import BackendError, SpacingError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.publish import RECORD
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_runtime.site_secret import SITE_SECRET_VARIABLE

INFERENCE = InferenceOptions(engine="openvino", precision="f32", threads=1)
NO_GRAPH = InferenceOptions(engine="openvino", precision="int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, an export of three series and a mark."""
    root = tmp_path_factory.mktemp("actor")
    write_model(root / "model")
    write_export(root / "in", 3)
    write_ct_series(root / "gap", replace(TINY, shape=(8, 24, 24)), omit=(3,))
    (root / "mark").touch()
    return root


def setup_of(folder: Path) -> ActorSetup:
    model = load_model(folder / "model")
    return ActorSetup(
        model.folder, model.digest, "", INFERENCE, OutputOptions(), folder / "in", folder / "mark", digest_of_secret()
    )


def jobs_of(folder: Path, out: Path) -> list[SeriesJob]:
    sources = sorted({path.parent for path in (folder / "in").rglob("*.dcm")})
    return [SeriesJob(source, out / source.name) for source in sources]


def test_series_are_segmented_with_one_opened_engine_also_after_a_pause(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    original = neighbours.open_backend
    monkeypatch.setattr(neighbours, "open_backend", lambda *given: opened.append(given) or original(*given))
    actor = SeriesActor(setup_of(folder), 0)
    first, second, third = jobs_of(folder, tmp_path)

    engine = actor.begin()
    with ThreadPoolExecutor(AHEAD) as calls:
        together = list(calls.map(actor.segment, (first, second)))
    alone = actor.segment(third)

    assert isinstance(engine, EngineInfo)
    assert engine.name == "openvino"
    assert [*together, alone] == [None, None, None]
    assert all((job.folder / RECORD).is_file() for job in (first, second, third))
    assert len(opened) == 1


def test_series_that_fails_is_answered_with_its_error_and_the_next_one_works(folder: Path, tmp_path: Path) -> None:
    actor = SeriesActor(setup_of(folder), 0)
    actor.begin()

    failed = actor.segment(SeriesJob(folder / "gap", tmp_path / "gap"))

    assert isinstance(failed, SpacingError)
    assert actor.segment(jobs_of(folder, tmp_path)[0]) is None


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda setup, _: replace(setup, version="0.0.1"), "UCSEG-E131", "ucseg"),
        (lambda setup, _: replace(setup, model_digest="0" * 64), "UCSEG-E131", "another model"),
        (lambda setup, other: replace(setup, mark=other), "UCSEG-E150", "folder of results"),
        (lambda setup, other: replace(setup, export=other), "UCSEG-E102", "export"),
        (lambda setup, other: replace(setup, model_folder=other), "UCSEG-E130", "manifest"),
        (lambda setup, _: replace(setup, inference=NO_GRAPH), "UCSEG-E141", "no int8 graph"),
    ],
    ids=["version", "model", "results", "export", "no model", "engine"],
)
def test_node_that_differs_from_the_driver_s_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[ActorSetup, Path], ActorSetup], code: str, words: str
) -> None:
    answer = SeriesActor(change(setup_of(folder), tmp_path / "canary"), 0).begin()

    assert isinstance(answer, Broken)
    assert answer.error.code == code
    assert words in str(answer.error).lower()
    assert "canary" not in str(answer.error)


def test_node_with_another_secret_is_refused_and_the_secret_is_not_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SITE_SECRET_VARIABLE, "the driver's")
    setup = setup_of(folder)
    monkeypatch.setenv(SITE_SECRET_VARIABLE, "another")

    answer = SeriesActor(setup, 0).begin()

    assert isinstance(answer, Broken)
    assert SITE_SECRET_VARIABLE in str(answer.error)
    assert "the driver's" not in repr(setup)


def test_engine_that_cannot_be_opened_is_the_answer_to_everything(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise BackendError("no memory on the GPU.")

    monkeypatch.setattr(neighbours, "open_backend", refused)
    actor = SeriesActor(setup_of(folder), 0)
    actor.begin()
    jobs = jobs_of(folder, tmp_path)

    with ThreadPoolExecutor(AHEAD) as calls:
        answers = list(calls.map(actor.segment, jobs))

    assert [str(answer.error) for answer in answers if isinstance(answer, Broken)] == ["no memory on the GPU."] * 3


def test_defect_is_told_by_type_and_place_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("canary")

    monkeypatch.setattr(neighbours, "open_backend", broken)
    actor = SeriesActor(setup_of(folder), 0)
    actor.begin()

    answer = actor.segment(jobs_of(folder, tmp_path)[0])

    assert isinstance(answer, Broken)
    assert (answer.error.code, answer.error.exit_code) == ("UCSEG-E199", 1)
    assert "ZeroDivisionError" in str(answer.error)
    assert "canary" not in str(answer.error)


def test_runners_side_by_side_begin_with_servers_of_their_own() -> None:
    addresses = tuple(server_address(f"grpc://127.0.0.1:{port}") for port in (1, 2, 3))
    server = TritonServer(addresses)

    assert [server.beginning_with(number).addresses[0].port for number in range(4)] == [1, 2, 3, 1]
    assert [address.port for address in server.beginning_with(2).addresses] == [3, 1, 2]
