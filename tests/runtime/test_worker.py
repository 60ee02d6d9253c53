"""A worker: answers, errors that keep what they say, a death that is noticed, and an end that leaves no process."""

from __future__ import annotations

import json
import operator
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests import worker_jobs
from ucseg_runtime import errors
from ucseg_runtime.errors import SpacingError, UcsegError
from ucseg_runtime.worker import ChildTracebackError, Worker, WorkerDiedError


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def leaves() -> list[type[UcsegError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UcsegError)]


def test_functions_are_called_in_another_process(worker: Worker) -> None:
    worker.start(os.getpid)
    assert worker.answer() == worker.pid != os.getpid()


def test_arrays_larger_than_a_pipe_go_there_and_back_unchanged(worker: Worker) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (40, 100, 500), dtype=np.uint16)
    worker.start(operator.neg, array)
    np.testing.assert_array_equal(worker.answer(), -array)


def test_an_error_keeps_type_code_message_and_hint(worker: Worker) -> None:
    worker.start(worker_jobs.refuse)
    with pytest.raises(SpacingError) as caught:
        worker.answer()
    with pytest.raises(SpacingError) as here:
        worker_jobs.refuse()
    assert caught.value.as_json() == here.value.as_json()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_error_survives_the_border(kind: type[UcsegError]) -> None:
    error = kind("what is wrong.", hint="what to do.", code="UCSEG-E999")
    assert pickle.loads(pickle.dumps(error)).as_json() == error.as_json()  # noqa: S301  (made one line above)


def test_a_defect_keeps_its_type_and_brings_the_traceback_of_the_child(worker: Worker) -> None:
    worker.start(json.loads, "{")
    with pytest.raises(json.JSONDecodeError) as caught:
        worker.answer()
    assert isinstance(caught.value.__cause__, ChildTracebackError)
    assert "raw_decode" in str(caught.value.__cause__)


def test_a_defect_that_cannot_be_pickled_is_named_by_type_alone(worker: Worker) -> None:
    worker.start(worker_jobs.be_stubborn)
    with pytest.raises(RuntimeError, match="StubbornError in a child process") as caught:
        worker.answer()
    assert "canary" not in str(caught.value)


def test_a_death_is_noticed_and_the_next_call_works_again() -> None:
    with Worker() as worker:
        first = worker.pid
        worker.start(signal.raise_signal, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"was ended by signal 9 \(SIGKILL\)"):
            worker.answer()
        worker.start(os.getpid)
        assert worker.answer() != first


def test_leaving_ends_a_child_in_the_middle_of_its_work_or_of_its_answer() -> None:
    with Worker() as sleeper, Worker() as talker:
        sleeper.start(time.sleep, 600)
        talker.start(bytes, 10_000_000)  # more than a pipe holds, and nobody asks for it
        time.sleep(0.5)
    for ended in (sleeper, talker):
        with pytest.raises(ProcessLookupError):
            os.kill(ended.pid, 0)


def test_a_child_whose_parent_was_killed_ends_by_itself() -> None:
    code = """
import time
from ucseg_runtime.worker import Worker
with Worker() as worker:
    print(worker.pid, flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 60
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
