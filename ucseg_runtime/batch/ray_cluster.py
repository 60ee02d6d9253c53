"""The connection to a Ray cluster that exists, and what it must hold."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucseg_runtime.batch.run import STATE_FOLDER
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.publish import reported_as_output_error

_ADDRESS_VARIABLE = "RAY_ADDRESS"
_LISTENER_S = 10.0


@dataclass(frozen=True)
class RayOptions:
    """What a caller may choose of the cluster.

    Attributes:
        address: Of the cluster; ``auto``: RAY_ADDRESS, or the one that runs on this machine.
        actors: Number of them; 0: as many as the cluster can hold.
        cpus: Processors that each reserves, and threads that its engine has.
        gpus: GPUs that each reserves; a part of 1 lets several share one.
    """

    address: str = "auto"
    actors: int = 0
    cpus: float = 2.0
    gpus: float = 0.0


@contextmanager
def connected(address: str) -> Iterator[Any]:  # Any: Ray is optional
    """The module of Ray, connected to a cluster for the length of a ``with`` block. None is ever started here.

    Raises:
        BackendUnavailableError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise BackendUnavailableError("The ray runner needs the 'ray' extra:", hint="pip install 'ucseg[ray]'")
    _require_listener(address)
    ray = importlib.import_module("ray")
    try:
        with _kept_signal_handlers():
            # What actors print stays in the logs of their nodes.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address) from error
    # Ray prints on standard output what its daemons say, such as that a worker has died; only results belong there.
    with contextlib.redirect_stdout(sys.stderr), own_interruptions():
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def own_interruptions() -> Iterator[None]:
    """Raise again what a handler of signals raised while compiled code of Ray ran.

    Such code may give a result all the same (Ray 2.60: ``core_worker.wait``), which Python makes a `SystemError` of.
    """
    try:
        yield
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def most_actors(resources: Mapping[str, float], options: RayOptions) -> int:
    """How many actors a cluster can hold at most.

    Args:
        resources: Of the whole cluster, as Ray names them.
        options: What each of them reserves.

    Raises:
        BackendUnavailableError: Not one.
    """
    wanted = {"CPU": options.cpus, "GPU": options.gpus}
    most = min((math.floor(resources.get(name, 0.0) / share) for name, share in wanted.items() if share), default=1)
    if not most:
        has, needs = (
            f"{some.get('CPU', 0.0):g} CPU and {some.get('GPU', 0.0):g} GPU" for some in (dict(resources), wanted)
        )
        raise BackendUnavailableError(
            f"the Ray cluster has {has}; an actor needs {needs}.", hint="See --actor-cpus and --actor-gpus."
        )
    return most


@contextmanager
def marked(out: Path) -> Iterator[Path]:
    """A file in the folder of results, by which a node can see that it has the same folder; gone afterwards.

    Raises:
        OutputError: It cannot be made.
    """
    mark = out.resolve() / STATE_FOLDER / f"cluster-{secrets.token_hex(8)}"
    with reported_as_output_error():
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _require_listener(address: str) -> None:
    """Ray itself would try for many minutes.

    Raises:
        BackendUnavailableError: Nobody listens there.
    """
    named = os.environ.get(_ADDRESS_VARIABLE, "") if address == "auto" else address
    host, separator, port = named.rpartition(":")
    if not (separator and port.isdigit()):
        return  # Ray finds its own, or says that it cannot be understood
    try:
        socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), _LISTENER_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(named) from error


def _no_cluster(address: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"no Ray cluster of this version of Ray and Python answers at {address!r}.",
        hint=f"Begin one with ray start, and name its head with --ray-address HOST:6379 or {_ADDRESS_VARIABLE}.",
    )


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM in place of ours, which ends a batch in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
