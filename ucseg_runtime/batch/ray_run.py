"""A batch on a Ray cluster that exists: actors hold the opened model, the driver hands out series and keeps the leases.

Ray moves jobs and answers, which are small, and says which actor has died. It is not asked what is done: that is what
records say, as in every other batch. Nothing that is needed after a crash lies in Ray.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ucseg_runtime.batch.actor import AHEAD, ActorSetup, Answer, Broken, SeriesActor, digest_of_secret
from ucseg_runtime.batch.ray_cluster import RayOptions, connected, marked, most_actors
from ucseg_runtime.batch.runners import Finished
from ucseg_runtime.batch.tasks import Deaths, Task, Tasks
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import EngineMismatchError
from ucseg_runtime.model_folder import Model
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo

_LOGGER = logging.getLogger(__name__)

_MOST_DEATHS_IN_A_ROW = 10
"""Deaths without an answer in between, for each actor; then it is not the series."""

_LOOK_EVERY_S = 1.0
_REMIND_EVERY = 60


@contextmanager
def ray_runner(
    options: RayOptions, model: Model, inference: InferenceOptions, outputs: OutputOptions, export: Path, out: Path
) -> Iterator[RayRunner]:
    """Connect to a cluster, for the length of a ``with`` block; the actors end with it.

    Args:
        options: What the caller chose of the cluster.
        model: Verified model folder, to be found on every node at the same path.
        inference: Engine, precision, threads, server.
        outputs: Which objects are written.
        export: Folder of the export, or one zip archive, likewise.
        out: Folder for the results, likewise, and the same one.

    Raises:
        BackendUnavailableError: Ray is not installed, there is no such cluster, or it is too small for one actor.
        OutputError: The folder for the results cannot be written.
    """
    if not (inference.threads or inference.server):
        inference = replace(inference, threads=max(1, math.floor(options.cpus)))
    with connected(options.address) as ray, marked(out) as mark:
        setup = ActorSetup(
            model_folder=model.folder.resolve(),
            model_digest=model.digest,
            calibration=model.calibration.digest,
            inference=inference,
            outputs=outputs,
            export=export.resolve(),
            mark=mark,
            secret_digest=digest_of_secret(),
        )
        runner = RayRunner(ray, options, setup)
        try:
            yield runner
        finally:
            runner.end()


@dataclass(eq=False)
class _Actor:
    """One actor, as the driver sees it.

    Attributes:
        handle: Ray's.
        tasks: That it was given and has not answered, by Ray's reference of the answer.
    """

    handle: Any  # Ray is optional
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether it can be given a task. One over which an actor has died is alone: no other shall die with it."""
        return len(self.tasks) < AHEAD and not any(task.deaths for task in self.tasks.values())


@dataclass(frozen=True)
class _Death:
    """In place of an answer."""


class RayRunner:
    """Hands series to actors; see `ray_runner` and `Runner`.

    Args:
        ray: The module, connected.
        options: What the caller chose of the cluster.
        setup: What every actor is told.
    """

    def __init__(self, ray: Any, options: RayOptions, setup: ActorSetup) -> None:  # Any: Ray is optional
        self._ray = ray
        self._setup = setup
        self._class = ray.remote(SeriesActor).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_concurrency=AHEAD + 1, max_restarts=0
        )
        self._size = options.actors or most_actors(ray.cluster_resources(), options)
        self._numbers = itertools.count()
        self._starting: dict[Any, _Actor] = {}
        self._actors: list[_Actor] = []
        self._engines: list[EngineInfo | None] = []
        self._deaths = Deaths(
            "actors",
            _MOST_DEATHS_IN_A_ROW * self._size,
            "Is ucseg installed on every node? Ray's logs on the nodes say more.",
        )

    def engine(self) -> EngineInfo | None:
        """What the actors compute with, as soon as one of them has begun. See `Runner.engine`.

        Raises:
            UcsegError: An actor cannot work; the error says why.
        """
        if not self._engines:
            self._start(self._size)
        for looks in itertools.count(1):
            if self._engines:
                break
            self._look()
            if looks % _REMIND_EVERY == 0:
                _LOGGER.warning("no actor has begun; the cluster may be busy, or no node may have room for one")
        return self._engines[0]

    def segment(self, jobs: Iterable[SeriesJob | None], finished: Finished) -> None:
        """See `Runner.segment`.

        Raises:
            UcsegError: An actor cannot work, or they die one after the other.
        """
        tasks = Tasks(jobs, finished)
        while True:
            self._hand_out(tasks)
            if tasks.ended and not any(actor.tasks for actor in self._actors):
                return
            for actor, task, answer in self._look():
                if isinstance(answer, _Death):
                    self._bury(actor, tasks)
                elif isinstance(answer, Broken):
                    raise answer.error
                else:
                    self._deaths.forget()
                    tasks.finish(task, answer)

    def end(self) -> None:
        """End all actors. What they have begun to write is published or not there."""
        for actor in (*self._starting.values(), *self._actors):
            self._ray.kill(actor.handle)
        self._starting.clear()
        self._actors.clear()

    def _start(self, count: int) -> None:
        for _ in range(count):
            handle = self._class.remote(self._setup, next(self._numbers))
            self._starting[handle.begin.remote()] = _Actor(handle)

    def _hand_out(self, tasks: Tasks) -> None:
        """Give actors what is at hand: tasks that have to be alone to those with nothing else, the others evenly."""
        for actor in [actor for actor in self._actors if not actor.tasks]:
            if (alone := tasks.alone()) is not None:
                self._give(actor, alone)
        while (free := self._free(tasks)) is not None:
            task = tasks.upcoming()
            if task is None:
                return
            self._give(free, task)

    def _free(self, tasks: Tasks) -> _Actor | None:
        """The one with the fewest tasks; while a task has to be alone, the second, so that the first gets there."""
        free = sorted((actor for actor in self._actors if actor.has_room), key=lambda actor: len(actor.tasks))
        kept = 1 if tasks.any_waits_to_be_alone else 0
        return free[kept] if len(free) > kept else None

    def _give(self, actor: _Actor, task: Task) -> None:
        actor.tasks[actor.handle.segment.remote(task.job)] = task

    def _look(self) -> list[tuple[_Actor, Task, Answer | _Death]]:
        """Wait a moment for answers, and for actors that begin."""
        given = {reference: actor for actor in self._actors for reference in actor.tasks}
        ready, _ = self._ray.wait([*self._starting, *given], timeout=_LOOK_EVERY_S)
        answers: list[tuple[_Actor, Task, Answer | _Death]] = []
        for reference in ready:
            answer = self._answer(reference)
            if reference in self._starting:
                self._welcome(self._starting.pop(reference), cast(EngineInfo | Broken | _Death | None, answer))
            else:
                actor = given[reference]
                answers.append((actor, actor.tasks[reference], cast(Answer | _Death, answer)))
                if not isinstance(answer, _Death):
                    del actor.tasks[reference]
        return answers

    def _answer(self, reference: Any) -> object:  # Any: Ray is optional
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            raise  # an exception of the actor's code, which is a defect
        except self._ray.exceptions.RayError:
            return _Death()

    def _welcome(self, actor: _Actor, answer: EngineInfo | Broken | _Death | None) -> None:
        """An actor has begun.

        Raises:
            UcsegError: It cannot work, or computes with something else than the others.
        """
        if isinstance(answer, _Death):
            self._replace(actor)
            return
        if isinstance(answer, Broken):
            raise answer.error
        self._engines.append(answer)
        if answer != self._engines[0]:
            raise EngineMismatchError(
                f"one node computes with {answer}, another with {self._engines[0]}; results would differ.",
                hint="Name engine and precision, or let actors reserve what only one kind of node has.",
            )
        self._actors.append(actor)

    def _bury(self, actor: _Actor, tasks: Tasks) -> None:
        """An actor has died: its tasks go to others."""
        self._actors.remove(actor)
        self._replace(actor)
        tasks.take_back(actor.tasks.values(), "actors")

    def _replace(self, actor: _Actor) -> None:
        """Start another one.

        Raises:
            BackendError: Too many have died in a row.
        """
        self._ray.kill(actor.handle)  # it may live on where the network is broken
        _LOGGER.info("an actor has died and is replaced")
        self._deaths.count()
        self._start(1)
