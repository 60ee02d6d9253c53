"""The far end of a batch on a cluster: a process that holds the opened model and segments what it is given.

Nothing in here knows Ray: the methods of `SeriesActor` are called from several threads, as Ray does.
"""

from __future__ import annotations

import hashlib
import hmac
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from ucseg_runtime.batch.runners import LocalRunner
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import EngineMismatchError, InputError, OutputError, UcsegError, type_and_place
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.site_secret import SITE_SECRET_VARIABLE, site_secret
from ucseg_runtime.version import __version__

AHEAD = 4
"""Jobs that an actor has at the same time: one is read, one in the network, one written, and one is at hand.

Without the last the next would be asked for when it is to be read, and reading would wait for the way there and back.
"""


@dataclass(frozen=True)
class ActorSetup:
    """What every actor of a batch is told. All paths must lead to the same places on every node.

    Attributes:
        model_folder: Where the model is.
        model_digest: Of that model.
        calibration: Digest of its calibration; empty where it has none.
        inference: Engine, precision, threads, server.
        outputs: Which objects are written.
        export: Folder of the export, or one zip archive.
        mark: A file in the folder of results, made for this batch: who sees it has the same folder.
        secret_digest: See `digest_of_secret`.
        version: Of ucseg.
    """

    model_folder: Path = field(repr=False)
    model_digest: str
    calibration: str
    inference: InferenceOptions
    outputs: OutputOptions
    export: Path = field(repr=False)
    mark: Path = field(repr=False)
    secret_digest: str
    version: str = __version__


@dataclass(frozen=True)
class Broken:
    """The actor can segment nothing, whatever the series.

    Attributes:
        error: Why.
    """

    error: UcsegError


Answer: TypeAlias = UcsegError | Broken | None
"""What became of a job: nothing to say where it is done."""


def digest_of_secret() -> str:
    """By which machines can see that they have the same secret; it cannot be told from this."""
    return hmac.new(site_secret(), b"ucseg batch: same secret", hashlib.sha256).hexdigest()


class SeriesActor:
    """Segments series with a model that is opened once, by the same steps as a batch on one machine.

    Args:
        setup: What every actor is told.
        number: Of this actor, from 0; where there are several servers, its own is the first.
    """

    def __init__(self, setup: ActorSetup, number: int) -> None:
        self._setup = setup
        self._number = number
        self._given: queue.SimpleQueue[tuple[SeriesJob, Future[Answer]]] = queue.SimpleQueue()
        self._in_work: dict[int, Future[Answer]] = {}
        self._lock = threading.Lock()
        self._state: Future[Broken | None] = Future()

    def begin(self) -> EngineInfo | Broken | None:
        """Check that this node has what the driver has, and get ready; has to be called once, before `segment`.

        Returns:
            What computes; None where a server does; or why nothing can be segmented here.
        """
        try:
            runner = self._checked_runner()
            engine = runner.engine()
        except UcsegError as error:
            return Broken(error)
        threading.Thread(target=self._work, args=(runner,), name="series", daemon=True).start()
        return engine

    def segment(self, job: SeriesJob) -> Answer:
        """Segment a series, and wait for that; called by several threads, of which the work overlaps."""
        answer: Future[Answer] = Future()
        with self._lock:
            if self._state.done():
                return self._state.result()
            self._given.put((job, answer))
        return answer.result()

    def _work(self, runner: LocalRunner) -> None:
        """Segment until the process is ended or nothing works any more."""
        try:
            runner.segment(self._jobs(), self._finished)
        except UcsegError as error:
            self._end(Broken(error))
        except Exception as error:  # noqa: BLE001  the driver must be answered, by type and place alone
            message = f"defect in ucseg, in an actor: {type_and_place(error)}."
            self._end(Broken(UcsegError(message, code="UCSEG-E199")))

    def _jobs(self) -> Iterator[SeriesJob | None]:
        ordinal = 0
        while True:
            try:
                job, answer = self._given.get(block=not self._in_work)
            except queue.Empty:
                yield None
                continue
            ordinal += 1
            self._in_work[ordinal] = answer
            yield job

    def _finished(self, ordinal: int, error: UcsegError | None) -> None:
        self._in_work.pop(ordinal).set_result(error)

    def _end(self, why: Broken) -> None:
        """Answer everything that was given and will be."""
        with self._lock:
            self._state.set_result(why)
        for answer in self._in_work.values():
            answer.set_result(why)
        while not self._given.empty():
            self._given.get()[1].set_result(why)

    def _checked_runner(self) -> LocalRunner:
        """What segments here.

        Raises:
            UcsegError: This node has something else than the driver.
        """
        setup = self._setup
        if setup.version != __version__:
            raise EngineMismatchError(
                f"a node has ucseg {__version__}, the driver {setup.version}.", hint="Install the same on all nodes."
            )
        if digest_of_secret() != setup.secret_digest:
            raise OutputError(
                f"a node has another {SITE_SECRET_VARIABLE} than the driver, so UIDs of results would differ.",
                hint="Set it before ray start on every node, to the same value.",
            )
        if not setup.mark.is_file():
            raise OutputError(
                "a node does not see the folder of results.", hint="Give an --out that all nodes share, by one path."
            )
        if not setup.export.exists():
            raise InputError(
                "a node does not see the export.",
                hint="Put it where all nodes share it, by one path.",
                code="UCSEG-E102",
            )
        return LocalRunner(self._same_model(), self._own_inference(), setup.outputs)

    def _same_model(self) -> Model:
        # The driver has asked whether the site trusts the model; here it must be the very same one.
        model = load_model(self._setup.model_folder, whoever_made_it=True)
        if (model.digest, model.calibration.digest) != (self._setup.model_digest, self._setup.calibration):
            raise EngineMismatchError(
                "a node has another model, or another calibration of it, at the path of the model folder.",
                hint="Copy the same one to all nodes.",
            )
        return model

    def _own_inference(self) -> InferenceOptions:
        server = self._setup.inference.server
        if server is None:
            return self._setup.inference
        return replace(self._setup.inference, server=server.beginning_with(self._number))
