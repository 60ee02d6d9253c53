"""What the driver asks of Ray, without Ray: actors that answer, die or are late as a test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from ucseg_runtime.batch.actor import Answer, Broken
from ucseg_runtime.neighbours import SeriesJob
from ucseg_runtime.segmentation import EngineInfo

ENGINE = EngineInfo("fake", "0", "f32", "none")


class RayError(Exception):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's."""


class Death(Exception):  # noqa: N818  an event
    """Raised by what stands in for an actor's work."""


Begin = Callable[[int], EngineInfo | Broken | None]
Segment = Callable[[int, SeriesJob], Answer]


def same_engine(_: int) -> EngineInfo:
    return ENGINE


@dataclass(eq=False)
class FakeActor:
    """Runs a call when its answer is waited for; one that dies takes all its calls with it."""

    number: int
    world: FakeRay
    alive: bool = True

    @property
    def begin(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: self.world.called(self, lambda: self.world.on_begin(self.number)))

    @property
    def segment(self) -> SimpleNamespace:
        return SimpleNamespace(remote=self._segment)

    def _segment(self, job: SeriesJob) -> int:
        self.world.given.append((self.number, job.folder.name, len(self.world.calls_of(self))))
        return self.world.called(self, lambda: self.world.on_segment(self.number, job))


@dataclass(eq=False)
class FakeRay:
    """A module and its cluster.

    Attributes:
        on_segment: Work of the actor of a number; may raise `Death`.
        on_begin: Likewise.
        resources: Of the cluster.
        given: Number of the actor, name of the job's folder, and how many calls it had when it was given it.
    """

    on_segment: Segment
    on_begin: Begin = same_engine
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 4.0})
    given: list[tuple[int, str, int]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    reserved: dict[str, object] = field(default_factory=dict)
    exceptions: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    )

    def __post_init__(self) -> None:
        self._references = itertools.count()
        self._open: dict[int, tuple[FakeActor, Callable[[], object]]] = {}

    def cluster_resources(self) -> Mapping[str, float]:
        return self.resources

    def remote(self, _: type) -> FakeRay:
        return self

    def options(self, **reserved: object) -> SimpleNamespace:
        self.reserved.update(reserved)
        return SimpleNamespace(remote=lambda setup, number: FakeActor(number, self))

    def called(self, actor: FakeActor, call: Callable[[], object]) -> int:
        reference = next(self._references)
        self._open[reference] = actor, call
        return reference

    def calls_of(self, actor: FakeActor) -> list[int]:
        return [reference for reference, (owner, _) in self._open.items() if owner is actor]

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        assert references, "nothing would ever be ready"
        assert timeout > 0
        return references[:1], references[1:]

    def get(self, reference: int) -> object:
        actor, call = self._open.pop(reference)
        if not actor.alive:
            raise RayError
        try:
            return call()
        except Death:
            actor.alive = False
            raise RayError from None

    def kill(self, actor: FakeActor) -> None:
        actor.alive = False
        self.killed.append(actor.number)
