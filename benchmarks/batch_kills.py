"""Kill a batch at random moments, start it again, and compare what it leaves with an undisturbed run, as JSON.

    python benchmarks/batch_kills.py [--n 500] [--series 40] [--seed 0] [--minutes 20] [--at-once 1] [--lanes 1]

Every kill is SIGKILL of the parent, of one of the processes below it, or of the whole process group, at a moment drawn
from the length of an undisturbed run. A round is started again until it ends by itself; then its tree of results must
be that of the undisturbed run, byte for byte, with nothing else in it. The export is made up: tiny series, and a model
that sorts voxels by intensity. Several rounds may run at once, each with an export's results of its own: most of a
start is one process that imports. All then take longer than that undisturbed run did, so that the end of a first start
is hit less, and that of the starts after it more.

`lost`: series without results at the end of a round; `changed`: files that differ; `foreign`: files that should not be
there; `bad_exits`: rounds whose last start ended with another code than 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.batch.exports import write_export, write_model

Target = str
TARGETS: tuple[Target, ...] = ("parent", "worker", "group")


@dataclass
class Findings:
    """What was counted over all rounds."""

    kills: Counter[Target] = field(default_factory=Counter)
    rounds: int = 0
    starts: int = 0
    lost: int = 0
    changed: int = 0
    foreign: int = 0
    bad_exits: int = 0


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="kills")
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="no round is begun after this time")
    parser.add_argument("--at-once", type=int, default=1, help="rounds beside each other")
    parser.add_argument("--lanes", type=int, default=1, help="of every batch that is killed")
    arguments = parser.parse_args()
    limits = Limits(arguments.n, arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = killed_rounds(
            Path(folder), limits, arguments.series, arguments.seed, arguments.at_once, arguments.lanes
        )
    figures = {
        "series": arguments.series,
        "undisturbed_s": round(seconds, 1),
        "seed": arguments.seed,
        "at_once": arguments.at_once,
        "lanes": arguments.lanes,
    }
    print(as_json(found, figures))


def as_json(found: Findings, figures: dict[str, object]) -> str:
    """What was counted, and under which circumstances."""
    return json.dumps(vars(found) | figures, indent=2)


@dataclass(frozen=True)
class Limits:
    """When it is enough.

    Attributes:
        kills: In all.
        minutes: After which no round is begun.
    """

    kills: int
    minutes: float


def killed_rounds(
    folder: Path, limits: Limits, series: int, seed: int, at_once: int = 1, lanes: int = 1
) -> tuple[Findings, float]:
    """Rounds until so many kills were done or the time is over; the findings, and an undisturbed run's seconds."""
    export = write_export(folder / "export", series)
    model = write_model(folder / "model")
    begun = time.monotonic()
    subprocess.run(command(export, folder / "undisturbed", model, lanes), check=True, capture_output=True)
    seconds = time.monotonic() - begun
    expected = digests(folder / "undisturbed")

    def rounds(strand: int) -> Findings:
        rng = random.Random(f"{seed} {strand}")  # noqa: S311  (moments to kill at, no secrets)
        kills = limits.kills // at_once + (strand < limits.kills % at_once)
        found = Findings()
        while found.kills.total() < kills and time.monotonic() - begun < 60.0 * limits.minutes:
            out = folder / f"strand {strand} round {found.rounds}"
            one_round(command(export, out, model, lanes), seconds, rng, found, kills)
            judge(digests(out), expected, found)
            found.rounds += 1
        return found

    with ThreadPoolExecutor(at_once) as pool:
        return sum_of(list(pool.map(rounds, range(at_once)))), seconds


def sum_of(parts: Sequence[Findings]) -> Findings:
    """All findings together."""
    together = Findings()
    for part in parts:
        for name, value in vars(part).items():
            setattr(together, name, getattr(together, name) + value)
    return together


def command(export: Path, out: Path, model: Path, lanes: int = 1) -> list[str]:
    """A batch in a program of its own."""
    program = "from ucseg_runtime.cli.app import main; main()"
    options = ["--out", str(out), "--model", str(model), "--lanes", str(lanes), "--json"]
    return [sys.executable, "-c", program, "batch", str(export), *options]


def one_round(batch: list[str], seconds: float, rng: random.Random, found: Findings, kills: int) -> None:
    """Start, kill at a random moment, and start again until a start ends by itself without a kill."""
    while True:
        found.starts += 1
        process = subprocess.Popen(batch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        is_last = found.kills.total() >= kills or rng.random() < 0.1
        if is_last:
            found.bad_exits += process.wait() != 0
            return
        try:
            process.wait(rng.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            target = rng.choice(TARGETS)
            kill(process.pid, target, rng)
            found.kills[target] += 1
        status = process.wait()
        orphans_gone(process.pid)
        if status == 0:
            return


def kill(parent: int, target: Target, rng: random.Random) -> None:
    """SIGKILL; where there is no worker just now, the parent."""
    if target == "group":
        os.killpg(parent, signal.SIGKILL)
        return
    workers = descendants(parent)
    try:
        os.kill(rng.choice(workers) if target == "worker" and workers else parent, signal.SIGKILL)
    except ProcessLookupError:  # the worker has just ended
        os.kill(parent, signal.SIGKILL)


def descendants(parent: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    for child in children(parent):
        found += [child, *descendants(child)]
    return found


def children(parent: int) -> list[int]:
    """None where it is gone already."""
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def orphans_gone(group: int) -> None:
    """Wait until the workers of a killed parent have noticed that."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise TimeoutError("workers outlive their parent by a minute")


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder of results, state left out."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".ucseg-batch")
    }


def judge(found_files: dict[str, str], expected: dict[str, str], found: Findings) -> None:
    """Compare a tree with that of the undisturbed run."""
    found.lost += sum(name not in found_files for name in expected if name.endswith("record.json"))
    found.changed += sum(found_files.get(name, digest) != digest for name, digest in expected.items())
    found.foreign += sum(name not in expected for name in found_files)


if __name__ == "__main__":
    main()
