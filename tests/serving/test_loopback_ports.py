"""Ports stay whose they are between being chosen and being listened at."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ucseg_runtime.errors import BackendError
from ucseg_serving.loopback_ports import LOOPBACK, lent_port, listening_port, number_of

HALF = 10


def listen_at(port: int) -> None:
    """As servers do."""
    with socket.create_server((LOOPBACK, port)):  # sets SO_REUSEADDR
        pass


def test_a_free_port_that_listens_is_taken() -> None:
    with listening_port(0) as taken, pytest.raises(OSError, match="in use"):
        listen_at(number_of(taken))


def test_a_program_listens_at_the_port_that_was_lent_to_it_and_does_so_again() -> None:
    with lent_port(0) as lent:
        listen_at(number_of(lent))
        listen_at(number_of(lent))


def test_lent_ports_are_given_to_nobody_who_asks_for_free_ones() -> None:
    """The premise is checked too: half of as many ports that are not held come round meanwhile."""
    with ExitStack() as held:
        lent = {number_of(held.enter_context(lent_port(0))) for _ in range(2 * HALF)}
        with ExitStack() as given_back:
            not_lent = {number_of(given_back.enter_context(lent_port(0))) for _ in range(2 * HALF)}
        chosen: set[int] = set()
        for _ in range(1_000_000):
            with lent_port(0) as free:
                chosen.add(number_of(free))
            if len(not_lent & chosen) >= HALF:  # others of this machine may take the rest
                break
    assert not lent & chosen
    assert len(not_lent & chosen) >= HALF


@pytest.mark.parametrize("take", [listening_port, lent_port])
def test_a_port_at_which_something_listens_is_told(take: Callable[[int], socket.socket]) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = number_of(other)
        with pytest.raises(BackendError, match=rf"^port {port} cannot be used \(Address already in use\)\. Stop"):
            take(port)
