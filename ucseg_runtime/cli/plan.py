"""``ucseg plan``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ucseg_runtime.cli.options import (
    AllowGapsOption,
    ChooseOption,
    EngineOption,
    ExcludeOption,
    GateOption,
    InputArgument,
    JsonOption,
    MaxMemoryOption,
    ModelOption,
    ModeOption,
    PrecisionOption,
    SegTypeOption,
    SeriesOption,
    ThreadsOption,
    VolumeOption,
    series_rules,
)
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.config import InferenceOptions, InputOptions, OutputOptions, SegEncoding

if TYPE_CHECKING:
    from ucseg_runtime.planning import RunPlan


def plan(
    input: InputArgument,  # noqa: A002  (the word on the command line)
    model: ModelOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    gate: GateOption = True,
    seg_type: SegTypeOption = "binary",
    series: SeriesOption = None,
    volume: VolumeOption = 0,
    allow_gaps: AllowGapsOption = 0,
    choose: ChooseOption = None,
    exclude: ExcludeOption = None,
    threads: ThreadsOption = 0,
    mode: ModeOption = "auto",
    max_memory: MaxMemoryOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say which series, engine, tiles, time and memory a run would take. Reads headers only."""
    wanted = InputOptions(series, volume, allow_gaps, rules=series_rules(choose, exclude))
    with reported(as_json):
        from ucseg_runtime.backends.choice import choose as choose_engine
        from ucseg_runtime.backends.load import engine_load
        from ucseg_runtime.inputs import found_in, grid_of, slices_at_a_time
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_runtime.planning import plan_run
        from ucseg_runtime.slice_stack import straight_grid

        loaded = load_model(model or default_model_folder())
        with found_in(input, loaded.manifest, wanted) as chosen:
            geometry = straight_grid(grid_of(chosen))
            at_a_time = slices_at_a_time(chosen, loaded.manifest)
        options = InferenceOptions(engine=engine, precision=precision, gate=gate, threads=threads, mode=mode)
        choice = choose_engine(loaded, options)
        load = engine_load(loaded, choice, options)
        outputs = OutputOptions(SegEncoding(seg_type))
        found = plan_run(geometry, loaded.manifest, outputs, load, max_memory, at_a_time)
        if as_json:
            decided = {"name": choice.name, "precision": choice.precision, "reason": choice.reason}
            print_json({**chosen.as_json(), "engine": decided, **asdict(found)})
        else:
            engine_rows = [("engine", f"{choice.name} {choice.precision}"), ("why", choice.reason)]
            print_table(chosen.name, ("what", "predicted"), [*engine_rows, *_rows(found)])


def _rows(found: RunPlan) -> list[tuple[str, str]]:
    network = "not known" if found.network_seconds is None else f"{found.network_seconds:.1f} s"
    return [
        ("source grid", " x ".join(map(str, found.source_shape))),
        ("model grid", " x ".join(map(str, found.model_shape))),
        ("tiles", str(found.tiles)),
        ("tiles at the same time", str(found.parallel_tiles)),
        ("network", network),
        ("everything else", f"{found.other_seconds:.1f} s"),
        ("peak memory", f"{found.peak_memory_mb:.0f} MB"),
    ]
