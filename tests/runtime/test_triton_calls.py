"""Requests to servers that fail in every way: what is repeated, where, and until when. No server is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from ucseg_runtime.backends import triton_calls
from ucseg_runtime.backends.triton_calls import ServerGroup
from ucseg_runtime.backends.triton_connection import (
    AnyArray,
    Call,
    ModelDescription,
    TransientError,
    check_answer,
    check_size,
    failure,
)
from ucseg_runtime.backends.triton_tensors import TritonTensor
from ucseg_runtime.errors import (
    BackendError,
    EngineMismatchError,
    InputError,
    ServerTimeoutError,
)
from ucseg_runtime.server_options import ServerAddress, TritonServer

FIRST, SECOND = ServerAddress("grpc", "127.0.0.1", 1), ServerAddress("grpc", "127.0.0.1", 2)
OUTPUT = TritonTensor("OUT", "FP32", (2, 3))
CALL = Call("model", {"IN": np.zeros((2, 3), dtype=np.float32)}, (OUTPUT,))
ANSWER = {"OUT": np.ones((2, 3), dtype=np.float32)}
DESCRIPTION = ModelDescription((), (OUTPUT,), 4, {})

Script = list[Exception | float]


class FakeConnection:
    """Fails as the script says, then answers; a number is a time that an answer takes."""

    def __init__(self, script: Script, description: ModelDescription = DESCRIPTION) -> None:
        self.script = script
        self.description = description
        self.asked: list[str] = []
        self.timeouts: list[float] = []

    def describe(self, model: str, timeout_s: float) -> ModelDescription:
        self.asked.append("describe")
        return self.description

    def infer(self, call: Call, timeout_s: float) -> Mapping[str, AnyArray]:
        self.asked.append("infer")
        self.timeouts.append(timeout_s)
        step = self.script.pop(0) if self.script else 0.0
        if isinstance(step, Exception):
            raise step
        if step > timeout_s:
            time.sleep(timeout_s)
            raise TransientError("no answer", timed_out=True)
        return ANSWER

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServerGroup]:
    def build(
        connections: dict[ServerAddress, FakeConnection],
        timeout_s: float = 5.0,
        check: Callable[[ModelDescription], None] = lambda description: None,
    ) -> ServerGroup:
        monkeypatch.setattr(triton_calls, "_connect", lambda address, server: connections[address])
        return ServerGroup(TritonServer(tuple(connections), timeout_s=timeout_s), "model", check)

    return build


def test_a_transient_failure_is_repeated_after_the_server_was_checked_again(group: Callable[..., ServerGroup]) -> None:
    connection = FakeConnection([TransientError("reset"), TransientError("reset")])
    assert group({FIRST: connection}).infer(CALL) is ANSWER
    assert connection.asked == ["describe", "infer"] * 3


def test_a_server_is_checked_once_as_long_as_it_answers(group: Callable[..., ServerGroup]) -> None:
    connection = FakeConnection([])
    servers = group({FIRST: connection})
    for _ in range(3):
        servers.infer(CALL)
    assert connection.asked == ["describe", "infer", "infer", "infer"]


@pytest.mark.parametrize("error", [InputError("refused"), BackendError("failed")])
def test_a_refusal_is_never_repeated(group: Callable[..., ServerGroup], error: Exception) -> None:
    connection, other = FakeConnection([error]), FakeConnection([])
    with pytest.raises(type(error), match=str(error)):
        group({FIRST: connection, SECOND: other}).infer(CALL)
    assert connection.asked == ["describe", "infer"]
    assert other.asked == []


def test_the_next_server_is_asked_at_once_and_stays_in_use(group: Callable[..., ServerGroup]) -> None:
    dead, living = FakeConnection([TransientError("refused")] * 9), FakeConnection([])
    servers = group({FIRST: dead, SECOND: living})
    started = time.monotonic()
    servers.infer(CALL)
    servers.infer(CALL)
    assert time.monotonic() - started < 0.5
    assert dead.asked == ["describe", "infer"]
    assert living.asked == ["describe", "infer", "infer"]


def test_a_server_that_hangs_leaves_time_for_the_next(group: Callable[..., ServerGroup]) -> None:
    hanging, living = FakeConnection([60.0]), FakeConnection([])
    assert group({FIRST: hanging, SECOND: living}, timeout_s=1.0).infer(CALL) is ANSWER
    assert hanging.timeouts[0] <= 0.5


def test_the_time_limit_holds_for_all_attempts_together(group: Callable[..., ServerGroup]) -> None:
    connection = FakeConnection([TransientError("refused")] * 100)
    started = time.monotonic()
    with pytest.raises(
        BackendError, match=r"no answer after \d+ attempts .* from grpc://127.0.0.1:1: refused"
    ) as caught:
        group({FIRST: connection}, timeout_s=1.0).infer(CALL)
    assert time.monotonic() - started <= 1.1
    assert isinstance(caught.value.__cause__, TransientError)
    with pytest.raises(ServerTimeoutError) as late:
        group({FIRST: FakeConnection([60.0])}, timeout_s=0.3).infer(CALL)
    assert (late.value.code, late.value.exit_code) == ("UCSEG-E143", 5)


def test_a_server_that_comes_back_with_another_model_is_refused(group: Callable[..., ServerGroup]) -> None:
    connection = FakeConnection([TransientError("reset")])

    def check(description: ModelDescription) -> None:
        if connection.asked.count("describe") > 1:
            raise EngineMismatchError("another model")

    with pytest.raises(EngineMismatchError, match="another model"):
        group({FIRST: connection}, check=check).infer(CALL)
    assert connection.asked == ["describe", "infer", "describe"]


@pytest.mark.parametrize(
    ("message", "repeatable", "kind", "code"),
    [
        ("[request id: 1] UCSEG-E118 the affine is wrong. Fix it.", False, InputError, "UCSEG-E118"),
        ("in ensemble 'ucseg_tiles', UCSEG-E140 openvino failed on a tile.", True, BackendError, "UCSEG-E140"),
        ("UCSEG-E140 ucseg_merged failed on a tile: Stub process 'x' is not healthy.", False, TransientError, ""),
        ("Exceeds maximum queue size", False, TransientError, ""),
        ("Request timeout expired", False, TransientError, ""),
        ("Request for unknown model: 'ucseg_volume' has no available versions", False, TransientError, ""),
        ("Request for unknown model: 'ucseg_volume' is not found", False, BackendError, "UCSEG-E140"),
        ("Socket closed", True, TransientError, ""),
        ("unexpected shape for input 'IMAGE'", False, BackendError, "UCSEG-E140"),
    ],
)
def test_what_a_server_says_decides_whether_to_repeat(
    message: str, repeatable: bool, kind: type[Exception], code: str
) -> None:
    error = failure(message, repeatable=repeatable)
    assert type(error) is kind
    assert getattr(error, "code", "") == code


@pytest.mark.parametrize(
    "answer", [{}, {"OUT": np.zeros((3, 2), dtype=np.float32)}, {"OUT": np.zeros((2, 3), dtype=np.float64)}]
)
def test_an_answer_of_another_name_shape_or_type_is_an_error(answer: dict[str, AnyArray]) -> None:
    with pytest.raises(BackendError, match="model answered OUT with"):
        check_answer(CALL, answer)


def test_what_no_message_can_carry_is_refused_before_it_is_sent() -> None:
    huge = np.broadcast_to(np.float32(0.0), (600, 1024, 1024))
    with pytest.raises(InputError, match="a request of 2.5 GB"):
        check_size(Call("ucseg_volume", {"VOLUME_FLOAT": huge}, ()))
    with pytest.raises(InputError, match="its answer of 2.5 GB"):
        check_size(Call("model", {}, (TritonTensor("OUT", "FP32", huge.shape),)))
