"""Whole series through a server that is killed again and again: what they write must be what undisturbed runs write.

A run is ``ucseg segment`` with so many inputs in a process of its own: scan, read, segment on the server, write, read
back, publish. Meanwhile the server is killed with signal 9 at random times and started again at the same ports.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from made_up import write_series
from measuring import Json
from served import Service
from ucseg_runtime.publish import RECORD

_SLICES = 20
_LIFE_S = (0.5, 3.0)
"""Between a server's being ready and its death, drawn at random."""


class Killer:
    """Starts a server again and again, and kills it so many times; used with ``with``.

    Args:
        service: What is started.
        kills: After which the server is left alone.
        seed: Of the times.
    """

    def __init__(self, service: Service, kills: int, seed: int) -> None:
        self.killed = 0
        self._service = service
        self._kills = kills
        self._chance = random.Random(seed)  # noqa: S311  (spreads kills, guards nothing)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_killing)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    @property
    def at_work(self) -> bool:
        """Whether kills are still to come; not so when the server did not start again."""
        return self.killed < self._kills and self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep_killing(self) -> None:
        while not self._over.is_set():
            with self._service.start() as server:
                if self.killed == self._kills:
                    self._over.wait()
                elif not self._over.wait(self._chance.uniform(*_LIFE_S)):
                    server.process.kill()
                    self.killed += 1


def kill_load(service: Service, series: int, kills: int, seed: int) -> Json:
    """Segment so many series while the server is killed so many times; again, until all the kills have happened.

    Args:
        service: Repository and ports.
        series: In one run of the command.
        kills: Of the server.
        seed: Of the times of the kills.
    """
    right, wrong, errors, runs = 0, 0, Counter[str](), 0
    with TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        write_series(study, _SLICES)
        with service.start():
            undisturbed_s, (expected,) = _segmented(service, study, 1, Path(folder) / "undisturbed")
        started = time.perf_counter()
        with Killer(service, kills, seed) as killer:
            while runs == 0 or killer.at_work:
                runs += 1
                for outcome in _segmented(service, study, series, Path(folder) / str(runs))[1]:
                    if "error" in outcome:
                        errors[outcome["error"]["code"]] += 1
                    else:
                        right += outcome == expected
                        wrong += outcome != expected
                print(f"run {runs}: {right} right, {killer.killed} kills", file=sys.stderr, flush=True)
    return {
        "series": runs * series,
        "kills": killer.killed,
        "right": right,
        "wrong": wrong,
        "errors": dict(errors),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_of_one_undisturbed": round(undisturbed_s, 1),
    }


def _segmented(service: Service, study: Path, series: int, out: Path) -> tuple[float, list[Json]]:
    """Seconds of one run of the command, and of every series the record of its results, or its error."""
    command = [str(Path(sys.executable).parent / "ucseg"), "segment", *[str(study)] * series]
    options = ["--out", str(out), "--model", str(service.model.folder), "--engine", "triton", "--url", service.url]
    started = time.perf_counter()
    # What is written to standard error, lost connections among others, is shown.
    done = subprocess.run(
        [*command, *options, "--no-gate", "--timeout", "300", "--json"], stdout=subprocess.PIPE, check=False
    )
    seconds = time.perf_counter() - started
    answer = json.loads(done.stdout)
    outcomes = answer if isinstance(answer, list) else [answer]
    folders = [out / str(number) for number in range(1, series + 1)] if series > 1 else [out]
    return seconds, [
        outcome if "error" in outcome else json.loads((folder / RECORD).read_text(encoding="utf-8"))
        for outcome, folder in zip(outcomes, folders, strict=True)
    ]
