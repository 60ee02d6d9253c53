"""Ports of loopback that are given to nobody else from the moment they are chosen."""

from __future__ import annotations

import socket

from ucseg_runtime.errors import BackendError

LOOPBACK = "127.0.0.1"


def listening_port(port: int) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0 takes a free one.

    Raises:
        BackendError: The port cannot be used.
    """
    listening = _bound(port)
    try:
        listening.listen()
    except OSError as error:
        listening.close()
        raise _unusable(port, error) from error
    return listening


def lent_port(port: int) -> socket.socket:
    """A socket at a port that a program started by this process will listen at, which sets SO_REUSEADDR as servers do.

    While the socket is open, the kernel gives the port to nobody who asks for a free one. Whoever asks for this number
    gets it as long as nobody listens there.

    Args:
        port: 0 takes a free one.

    Raises:
        BackendError: The port cannot be used.
    """
    return _bound(port)


def number_of(bound: socket.socket) -> int:
    """The port of a socket."""
    return int(bound.getsockname()[1])


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
    except OSError as error:
        bound.close()
        raise _unusable(port, error) from error
    return bound


def _unusable(port: int, error: OSError) -> BackendError:
    return BackendError(
        f"port {port} cannot be used ({error.strerror}).", hint="Stop what listens there, or choose another port."
    )
