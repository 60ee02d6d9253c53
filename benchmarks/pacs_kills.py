"""Kill a listener again and again while series are sent to it, and count what arrives at the archive, as JSON.

    python benchmarks/pacs_kills.py [--n 20] [--seed 0] [--minutes 15]

``ucseg pacs listen`` runs in a process of its own between dcmtk's storescu and Debian's Orthanc, all on loopback. It is
killed (SIGKILL) at a moment drawn anew, and started again on the same spool; series are sent all the time, each until
storescu says that every image was taken.

`lost`: series without all three results in the end; `twice`: objects that the archive has more than once; `put_aside`:
series that the listener has given up.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.batch.exports import TINY, write_model
from tests.pacs.archive import RESULTS, running_archive
from tests.pacs.listening import Listening, listening
from tests.pacs.programs import PacsPrograms, install_pacs_programs
from tests.phantoms import CtPhantom, write_ct_series

_LATEST_KILL_S = 8.0
_QUIET_S = 0.5
_DRAIN_S = 300.0
_PAUSE_S = 1.0


@dataclass
class Findings:
    """What was counted."""

    kills: int = 0
    series: int = 0
    repeats: int = 0
    lost: int = 0
    twice: int = 0
    put_aside: int = 0


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="no kill after this time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kills(
            install_pacs_programs(),
            Path(folder),
            arguments.n,
            random.Random(arguments.seed),  # noqa: S311  (moments to kill at, no secrets)
            arguments.minutes,
        )
    print(json.dumps(asdict(found) | {"seed": arguments.seed}, indent=2))


def kills(programs: PacsPrograms, folder: Path, count: int, rng: random.Random, minutes: float = 15.0) -> Findings:
    """Kill the listener so many times."""
    found = Findings()
    (folder / "orthanc").mkdir()
    model = write_model(folder / "model")
    with running_archive(programs, folder / "orthanc") as archive:
        options = ("--forward", archive.dimse, "--model", model, "--engine", "openvino", "--quiet-time", _QUIET_S)
        with listening(folder / "listener", *options) as listener:
            sender = _Sender(programs, folder / "sent", listener, found)
            sender.start()
            begun = time.monotonic()
            while found.kills < count and time.monotonic() - begun < 60.0 * minutes:
                time.sleep(rng.uniform(0.0, _LATEST_KILL_S))
                listener.kill()
                found.kills += 1
                listener.start()
            sender.end()
            _wait_until_empty(listener)
            found.put_aside = len(list((listener.spool / "failed").iterdir()))
        found.lost = sum(archive.modalities(item.study_uid) != RESULTS for item in sender.sent)
        found.twice = sum(number - 1 for number in Counter(archive.instance_uids()).values())
    found.series = len(sender.sent)
    return found


class _Sender(threading.Thread):
    """Sends one series after the other, each until it was taken."""

    def __init__(self, programs: PacsPrograms, folder: Path, listener: Listening, found: Findings) -> None:
        super().__init__(daemon=True)
        self.sent: list[CtPhantom] = []
        self._programs = programs
        self._folder = folder
        self._listener = listener
        self._found = found
        self._ended = threading.Event()

    def run(self) -> None:
        """Until it is ended; the last series is taken, too."""
        while not self._ended.is_set():
            phantom = replace(TINY, study=f"series {len(self.sent)}")
            files = write_ct_series(self._folder / str(len(self.sent)), phantom)
            while self._programs.send(files, "UCSEG", self._listener.port) != 0:
                self._found.repeats += 1
                time.sleep(_PAUSE_S / 4)
            self.sent.append(phantom)
            self._ended.wait(_PAUSE_S)

    def end(self) -> None:
        """Send no more."""
        self._ended.set()
        self.join()


def _wait_until_empty(listener: Listening) -> None:
    deadline = time.monotonic() + _DRAIN_S
    while any(any((listener.spool / stage).iterdir()) for stage in ("arriving", "ready", "segmented", "outbox")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the listener does not come to an end: {listener.said[-2000:]}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
