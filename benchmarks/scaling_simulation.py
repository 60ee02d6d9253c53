"""How many machines very many series need: the formulas of docs/scaling.md, and a simulation that checks them.

    python benchmarks/scaling_simulation.py            # the tables of the page

A discrete-event simulation of runners that read from one storage, compute, perhaps ask a GPU, and write. What a series
costs is in `PARAMETERS`: measured, counted, estimated or assumed, with where it comes from. Durations vary by a fifth
either way, as they do from study to study; the seed is fixed, so that the same numbers come out everywhere.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Source = Literal["measured", "counted", "estimated", "assumed"]


@dataclass(frozen=True)
class Parameter:
    """One figure.

    Attributes:
        value: In `unit`.
        unit: The same.
        source: How it was come by.
        where: Script or page that has it; of what, where it is an assumption.
    """

    value: float
    unit: str
    source: Source
    where: str


PARAMETERS = {
    "files": Parameter(133, "files of a series", "counted", "patient A, 133 × 512 × 512, uncompressed"),
    "input_mb": Parameter(70.0, "MB of a series", "counted", "the same"),
    "output_mb": Parameter(86.3, "MB of its results", "counted", "the same, demo model, default outputs"),
    "small_output_mb": Parameter(33.5, "MB of its results", "counted", "the same with --uncertainty seg"),
    "wire_mb": Parameter(157.3, "MB to and from a server", "counted", "12 tiles in, probabilities and uncertainty out"),
    "read_s": Parameter(0.39, "s", "measured", "performance.md, two cores: scan and read"),
    "network_s": Parameter(2.09, "s", "measured", "the same: network, OpenVINO f32, demo model"),
    "around_s": Parameter(1.64, "s", "measured", "the same: preprocess, stitch, restore, measure, picture"),
    "write_s": Parameter(1.54, "s", "measured", "the same: write and read back"),
    "cores": Parameter(2, "cores of a runner", "measured", "the same"),
    "headers_s": Parameter(1460, "headers/s of a runner", "measured", "reliability.md, warm cache, beside other work"),
    "tiles": Parameter(12, "tiles of a series", "measured", "performance.md, demo model, 64 × 80 × 80"),
    "tile_gflop": Parameter(23.98, "GFLOP of a tile", "counted", "roofline.md, demo model"),
    "tile_mb": Parameter(665.8, "MB of a tile", "counted", "the same, f32"),
    "full_tiles": Parameter(100, "tiles of a series", "assumed", "upstream's sizes, 96³, fine spacing"),
    "full_tile_gflop": Parameter(209.71, "GFLOP of a tile", "counted", "roofline.md, upstream's sizes"),
    "full_tile_mb": Parameter(2661.5, "MB of a tile", "counted", "the same, f32"),
    "full_tile_s": Parameter(1.143, "s a tile", "measured", "the same, two cores of an EPYC, OpenVINO f32"),
    "gpu_tflop_s": Parameter(66.9, "TFLOP/s", "assumed", "data sheet of an H100 SXM, f32 without tensor cores"),
    "gpu_tb_s": Parameter(3.35, "TB/s", "assumed", "the same"),
    "gpu_share": Parameter(0.5, "of that bound", "estimated", "nothing was ever measured on a GPU"),
    "storage_mb_s": Parameter(1000, "MB/s of a storage", "assumed", "one file server, 10 Gbit/s"),
}
"""What the plan is made of. A site puts its own figures in place of those that are assumed or estimated."""

SPREAD = 0.2
"""Durations of a stage are drawn evenly from 1 - SPREAD to 1 + SPREAD of the mean."""

DAY_S = 86_400

Engine = Literal["processor, demo model", "GPU, demo model", "processor, upstream's sizes", "GPU, upstream's sizes"]
Limit = Literal["runners", "GPUs", "storage"]

ENGINES: tuple[Engine, ...] = get_args(Engine)
GOALS = ((10**6, 1), (10**8, 30))
"""Series, and days in which they are to be done."""


def value(name: str) -> float:
    """One figure of `PARAMETERS`."""
    return PARAMETERS[name].value


@dataclass(frozen=True)
class Cost:
    """Of one series.

    Attributes:
        runner_s: Seconds of a runner, without those of storage and GPU.
        gpu_s: Seconds of a GPU.
        read_mb: From the storage.
        written_mb: To the storage; what is read back comes from the runner's own memory.
    """

    runner_s: float
    gpu_s: float
    read_mb: float
    written_mb: float

    @property
    def moved_mb(self) -> float:
        """From and to the storage."""
        return self.read_mb + self.written_mb


def cost_of(engine: Engine) -> Cost:
    """What a series costs with an engine."""
    around_s = value("read_s") + value("around_s") + value("write_s")
    moved = value("input_mb"), value("output_mb")
    network = {
        "processor, demo model": (value("network_s"), 0.0),
        "GPU, demo model": (0.0, _gpu_seconds("")),
        "processor, upstream's sizes": (value("full_tiles") * value("full_tile_s"), 0.0),
        "GPU, upstream's sizes": (0.0, _gpu_seconds("full_")),
    }
    processor_s, gpu_s = network[engine]
    return Cost(around_s + processor_s, gpu_s, *moved)


def _gpu_seconds(prefix: str) -> float:
    """Estimated: the roofline's bound of all tiles over the share of it that is reached."""
    arithmetic_s = value(f"{prefix}tile_gflop") / (1e3 * value("gpu_tflop_s"))
    memory_s = value(f"{prefix}tile_mb") / (1e6 * value("gpu_tb_s"))
    return value(f"{prefix}tiles") * max(arithmetic_s, memory_s) / value("gpu_share")


@dataclass(frozen=True)
class Site:
    """Machines.

    Attributes:
        engine: What runs the network.
        runners: Side by side.
        gpus: That they share.
        storage_mb_s: Of the storage that they share.
    """

    engine: Engine
    runners: int
    gpus: int
    storage_mb_s: float


@dataclass(frozen=True)
class Rate:
    """How fast a site is.

    Attributes:
        per_hour: Series.
        limit: What does not let it be more.
    """

    per_hour: float
    limit: Limit


def site_for(engine: Engine, series: int, days: float) -> Site:
    """The smallest that does so many series in so many days by the formulas, with a tenth to spare of everything."""
    cost, per_s = cost_of(engine), 1.1 * series / (days * DAY_S)
    storage_mb_s = per_s * cost.moved_mb
    alone_s = cost.runner_s + cost.gpu_s + cost.moved_mb / storage_mb_s
    return Site(engine, math.ceil(per_s * alone_s), math.ceil(per_s * cost.gpu_s), storage_mb_s)


def rate_by_formula(site: Site) -> Rate:
    """The least of what runners, GPUs and storage can do."""
    cost = cost_of(site.engine)
    alone_s = cost.runner_s + cost.gpu_s + cost.moved_mb / site.storage_mb_s
    rates: dict[Limit, float] = {"runners": site.runners / alone_s, "storage": site.storage_mb_s / cost.moved_mb}
    if site.gpus:
        rates["GPUs"] = site.gpus / cost.gpu_s
    limit = min(rates, key=lambda name: rates[name])
    return Rate(3600 * rates[limit], limit)


class Queue:
    """Something of which there are a few, asked for in turn."""

    def __init__(self, servers: int) -> None:
        self._free_at = [0.0] * servers

    def end_of(self, asked_at: float, seconds: float) -> float:
        """When a request of so many seconds is done; requests have to come in the order of their times."""
        begun = max(asked_at, heapq.heappop(self._free_at))
        heapq.heappush(self._free_at, begun + seconds)
        return begun + seconds


Stages: TypeAlias = Iterator[Callable[[float], float]]
"""Of one series: each is given the time at which it begins and gives the time at which it ends."""


def rate_by_simulation(site: Site, seed: int = 0) -> float:
    """Series per hour, of the middle half of a run of some fifty series for each runner."""
    rng = random.Random(seed)  # noqa: S311  (durations, no secrets)
    cost, storage, gpus = cost_of(site.engine), Queue(1), Queue(max(1, site.gpus))

    def varied(seconds: float) -> float:
        return seconds * rng.uniform(1 - SPREAD, 1 + SPREAD)

    def stages() -> Stages:
        yield lambda now: storage.end_of(now, varied(cost.read_mb / site.storage_mb_s))
        yield lambda now: now + varied(cost.runner_s - value("write_s"))
        if site.gpus:
            yield lambda now: gpus.end_of(now, varied(cost.gpu_s))
        yield lambda now: now + varied(value("write_s"))
        yield lambda now: storage.end_of(now, varied(cost.written_mb / site.storage_mb_s))

    ends = list(_ends(site.runners, max(2000, 50 * site.runners), stages))
    first, last = len(ends) // 4, 3 * len(ends) // 4
    return 3600 * (last - first) / (ends[last] - ends[first])


def _ends(runners: int, series: int, stages: Callable[[], Stages]) -> Iterator[float]:
    """When each series is done, in that order: a runner takes the next one as soon as it is free."""
    begun = min(runners, series)
    events: list[tuple[float, int, Stages]] = [(0.01 * runner, runner, stages()) for runner in range(begun)]
    while events:
        now, runner, current = heapq.heappop(events)
        stage = next(current, None)
        if stage is not None:
            heapq.heappush(events, (stage(now), runner, current))
            continue
        yield now
        if begun < series:
            begun += 1
            heapq.heappush(events, (now, runner, stages()))


def header_share(shards: int) -> float:
    """Share of a runner's time that goes to the headers of the whole export, of which it segments one n-th."""
    headers_s = shards * value("files") / value("headers_s")
    return headers_s / (headers_s + cost_of("processor, demo model").runner_s)


def slowest_share(series: int, shards: int, seed: int = 0) -> float:
    """Size of the largest of the shards, drawn as digests draw them, over the mean."""
    rng = random.Random(seed)  # noqa: S311  (places, no secrets)
    sizes = Counter(rng.randrange(shards) for _ in range(series))
    return max(sizes.values()) * shards / series


def parameter_table() -> list[str]:
    """All parameters."""
    rows = [(name, f"{item.value:g}", item.unit, item.source, item.where) for name, item in PARAMETERS.items()]
    return _table(("", "value", "", "", "of"), rows)


def cost_table() -> list[str]:
    """What one series costs with each engine."""
    rows = []
    for engine in ENGINES:
        cost = cost_of(engine)
        cores_s = value("cores") * cost.runner_s
        feeding = f"{(cost.runner_s + cost.gpu_s) / cost.gpu_s:.0f}" if cost.gpu_s else "–"
        rows.append((engine, f"{cost.runner_s:.2f}", f"{cores_s:.1f}", f"{1e3 * cost.gpu_s:.0f}", feeding))
    return _table(("network on", "runner, s", "core seconds", "GPU, ms", "runners that one GPU can serve"), rows)


def space_table() -> list[str]:
    """What the goals read and write, with a tenth to spare of every rate."""
    rows = []
    for series, days in GOALS:
        per_s = 1.1 * series / (days * DAY_S)
        opened = 2 * per_s * value("files")  # once for the header, once for the pixels
        rows.append(
            (
                _goal(series, days),
                f"{per_s:.1f}",
                f"{series * value('input_mb') / 1e6:.0f}",
                f"{series * value('output_mb') / 1e6:.0f}",
                f"{series * value('small_output_mb') / 1e6:.0f}",
                f"{per_s * value('input_mb') / 1e3:.1f}",
                f"{per_s * value('output_mb') / 1e3:.1f}",
                f"{opened:.0f}",
                f"{per_s * value('wire_mb') / 1e3:.1f}",
            )
        )
    header = (
        "goal",
        "series/s",
        "in, TB",
        "results, TB",
        "with 8 bits, TB",
        "read, GB/s",
        "written, GB/s",
        "files opened/s",
        "to servers, GB/s",
    )
    return _table(header, rows)


def _goal(series: int, days: int) -> str:
    return f"10^{round(math.log10(series))} in {days} d"


def plan_table() -> list[str]:
    """What the goals take, and the rates of such sites by formula and by simulation."""
    rows = []
    for series, days in GOALS:
        for engine in ENGINES:
            site = site_for(engine, series, days)
            formula, simulated = rate_by_formula(site), rate_by_simulation(site)
            rows.append(
                (
                    _goal(series, days),
                    engine,
                    str(site.runners),
                    f"{site.runners * value('cores'):.0f}",
                    str(site.gpus),
                    f"{site.storage_mb_s / 1e3:.1f}",
                    f"{formula.per_hour:.0f}",
                    f"{simulated:.0f}",
                    f"{series / simulated / 24:.2f}",
                )
            )
    header = ("goal", "network on", "runners", "cores", "GPUs", "storage, GB/s", "series/h", "simulated", "days")
    return _table(header, rows)


def limit_table() -> list[str]:
    """What limits sites around one storage as runners are added."""
    rows = []
    for runners in (4, 16, 36, 64):
        site = Site("processor, demo model", runners, 0, value("storage_mb_s"))
        formula = rate_by_formula(site)
        rows.append((str(runners), f"{formula.per_hour:.0f}", f"{rate_by_simulation(site):.0f}", formula.limit))
    return _table(("runners, demo model on the processor", "series/h", "simulated", "limit"), rows)


def shard_table() -> list[str]:
    """What shards lose by reading all headers each, and by not being equal."""
    rows = []
    for shards in (1, 4, 8, 16, 64, 256):
        largest = (f"{slowest_share(series, shards):.2f}" for series in (10**4, 10**5))
        rows.append((str(shards), f"{100 * header_share(shards):.0f}%", *largest))
    return _table(("shards", "time for headers", "largest over mean, 10^4 series", "10^5 series"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


TABLES = {
    "parameters": parameter_table,
    "cost": cost_table,
    "space": space_table,
    "plan": plan_table,
    "limit": limit_table,
    "shards": shard_table,
}
"""By the names under which the page has them."""


def main() -> None:
    """Print all tables."""
    for name, table in TABLES.items():
        print(f"<!-- {name} -->", *table(), "", sep="\n")


if __name__ == "__main__":
    main()
