"""Options of who segments the series of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ucseg_runtime.batch.runners import Runner
    from ucseg_runtime.config import InferenceOptions, OutputOptions
    from ucseg_runtime.model_folder import Model

RunnerName = Literal["local", "ray"]

_PANEL = "On a Ray cluster"

RunnerOption = Annotated[
    RunnerName,
    typer.Option(
        "--runner",
        help="local: this machine segments; ray: actors on a Ray cluster that exists do (extra: ray). "
        "--shard needs neither.",
    ),
]
LanesOption = Annotated[
    int,
    typer.Option(
        "--lanes",
        min=1,
        help="Processes that segment side by side here, each with an open model; they share the cores evenly.",
    ),
]
RayAddressOption = Annotated[
    str,
    typer.Option(
        "--ray-address",
        help="HOST:PORT of the cluster's head; auto: RAY_ADDRESS, or the cluster on this machine.",
        rich_help_panel=_PANEL,
    ),
]
ActorsOption = Annotated[
    int,
    typer.Option("--actors", min=0, help="Actors; 0: as many as the cluster can hold.", rich_help_panel=_PANEL),
]
ActorCpusOption = Annotated[
    float,
    typer.Option(
        "--actor-cpus",
        min=0.01,
        help="Processors that each actor reserves, and threads of its engine.",
        rich_help_panel=_PANEL,
    ),
]
ActorGpusOption = Annotated[
    float,
    typer.Option(
        "--actor-gpus",
        min=0.0,
        help="GPUs that each actor reserves; 0.5 lets two share one.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class RunnerArguments:
    """What was said on the command line of the runner."""

    name: RunnerName = "local"
    address: str = "auto"
    actors: int = 0
    cpus: float = 2.0
    gpus: float = 0.0
    lanes: int = 1

    def __post_init__(self) -> None:
        own = (self.address, self.actors, self.cpus, self.gpus)
        if self.name == "local" and own != ("auto", 0, 2.0, 0.0):
            raise typer.BadParameter("options of a cluster need --runner ray", param_hint="--runner")
        if self.name == "ray" and self.lanes != 1:
            raise typer.BadParameter("on a cluster there are actors: --actors", param_hint="--lanes")

    @contextmanager
    def opened(
        self, model: Model, inference: InferenceOptions, outputs: OutputOptions, export: Path, out: Path
    ) -> Iterator[Runner]:
        """The runner, for the length of a ``with`` block.

        Raises:
            UcsegError: See `ray_runner`.
        """
        from ucseg_runtime.batch.lanes import lanes_of
        from ucseg_runtime.batch.runners import LocalRunner

        if self.name == "local":
            alone = LocalRunner(model, inference, outputs)
            yield alone if self.lanes == 1 else lanes_of(alone, self.lanes)
            return
        from ucseg_runtime.batch.ray_cluster import RayOptions
        from ucseg_runtime.batch.ray_run import ray_runner

        options = RayOptions(self.address, self.actors, self.cpus, self.gpus)
        with ray_runner(options, model, inference, outputs, export, out) as runner:
            yield runner
