"""Ports stay whose they are between being chosen and being listened at."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from ucseg_runtime.errors import BackendError
from ucseg_serving.loopback_ports import LOOPBACK, lent_port, listening_port, number_of


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


def test_a_lent_port_is_given_to_nobody_who_asks_for_a_free_one() -> None:
    """The premise is checked too: a port that is not held comes round."""
    with lent_port(0) as lent, lent_port(0) as given_back:
        held, not_held = number_of(lent), number_of(given_back)
        given_back.close()
        chosen = set()
        for _ in range(200_000):
            with lent_port(0) as free:
                chosen.add(number_of(free))
            if not_held in chosen:
                break
    assert held not in chosen
    assert not_held in chosen


@pytest.mark.parametrize("take", [listening_port, lent_port])
def test_a_port_at_which_something_listens_is_told(take: Callable[[int], socket.socket]) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = number_of(other)
        with pytest.raises(BackendError, match=f"port {port} is taken"):
            take(port)
