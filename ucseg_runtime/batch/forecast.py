"""What a batch would do, how long it would take and how large it would get, from headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.load import REMOTE_LOAD, EngineLoad, engine_load
from ucseg_runtime.batch.export_index import ExportSeries
from ucseg_runtime.batch.plan import BatchPlan
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.errors import UcsegError
from ucseg_runtime.inputs import found_in, grid_of
from ucseg_runtime.model_folder import Model
from ucseg_runtime.planning import plan_run
from ucseg_runtime.publish import space_needed
from ucseg_runtime.slice_stack import straight_grid


@dataclass(frozen=True)
class SeriesForecast:
    """One series.

    Attributes:
        name: How the tree of results calls it: study/series.
        state: ``done``; ``run``: it would be segmented; ``unsuitable``; ``bad``: it would be refused.
        reason: Why it would run, or why not.
        seconds: That it would take; 0 where it would not run, or where the network's time is not known.
        megabytes: That its results take at most.
    """

    name: str
    state: str
    reason: str
    seconds: float = 0.0
    megabytes: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """All series of the plan.

    Attributes:
        series: In the order of the plan.
    """

    series: tuple[SeriesForecast, ...]

    @property
    def to_run(self) -> int:
        """Number of series that would be segmented."""
        return sum(item.state == "run" for item in self.series)

    @property
    def seconds(self) -> float:
        """Sum over all series."""
        return sum(item.seconds for item in self.series)

    @property
    def megabytes(self) -> float:
        """Sum over all series."""
        return sum(item.megabytes for item in self.series)

    def as_json(self) -> dict[str, object]:
        """For machines."""
        return {
            "series": [asdict(item) for item in self.series],
            "to_run": self.to_run,
            "seconds": self.seconds,
            "megabytes": self.megabytes,
        }


def forecast(plan: BatchPlan, model: Model, inference: InferenceOptions, outputs: OutputOptions) -> Forecast:
    """Judge every series of a plan as a run would; pixels are not read.

    Raises:
        ModelError: No engine may serve the model.
        BackendError: The engine that was asked for cannot be had.
    """
    load = REMOTE_LOAD if inference.server is not None else engine_load(model, choose(model, inference), inference)
    judge = _Judge(plan, model, outputs, load)
    unsuitable = (
        SeriesForecast(_name(plan, item.series), "unsuitable", f"{item.code} {item.reason}") for item in plan.unsuitable
    )
    return Forecast((*unsuitable, *(judge.of(series) for series in plan.series)))


@dataclass(frozen=True, eq=False)
class _Judge:
    plan: BatchPlan
    model: Model
    outputs: OutputOptions
    load: EngineLoad

    def of(self, series: ExportSeries) -> SeriesForecast:
        """One series."""
        name = _name(self.plan, series)
        why = self.plan.why_not_done(series)
        if not why:
            return SeriesForecast(name, "done", "")
        manifest = self.model.manifest
        try:
            with found_in(self.plan.index.source_of(series), manifest, self.plan.wanted(series)) as found:
                grid = straight_grid(grid_of(found))
        except UcsegError as error:
            return SeriesForecast(name, "bad", f"{error.code} {error}")
        run = plan_run(grid, manifest, self.outputs, self.load)
        needed = space_needed(grid.shape, len(manifest.classes), self.outputs)
        return SeriesForecast(name, "run", why, (run.network_seconds or 0.0) + run.other_seconds, needed / 1e6)


def _name(plan: BatchPlan, series: ExportSeries) -> str:
    return f"{plan.places.study_name(series)}/{plan.places.series_name(series)}"
