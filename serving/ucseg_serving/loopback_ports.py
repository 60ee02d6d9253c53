"""Ports of loopback that are nobody else's from the moment they are chosen."""

from __future__ import annotations

import socket

from ucseg_runtime.errors import BackendError

LOOPBACK = "127.0.0.1"


def listening_port(port: int) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0 takes a free one.

    Raises:
        BackendError: The port is taken.
    """
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise _taken(port, error) from error


def lent_port(port: int) -> socket.socket:
    """A socket at a port that a program started by this process will listen at, which sets SO_REUSEADDR as servers do.

    While the socket is open, the kernel gives the port to nobody who asks for a free one.

    Args:
        port: 0 takes a free one.

    Raises:
        BackendError: The port is taken.
    """
    lent = socket.socket()
    lent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        lent.bind((LOOPBACK, port))
    except OSError as error:
        lent.close()
        raise _taken(port, error) from error
    return lent


def number_of(bound: socket.socket) -> int:
    """The port of a socket."""
    return int(bound.getsockname()[1])


def _taken(port: int, error: OSError) -> BackendError:
    return BackendError(
        f"port {port} is taken ({error.strerror}).", hint="Stop what listens there, or choose another port."
    )
