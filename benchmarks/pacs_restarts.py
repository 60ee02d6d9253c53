"""Restart an archive again and again while results are sent to it, and count what arrives, as JSON.

    python benchmarks/pacs_restarts.py [--n 20] [--seed 0] [--minutes 15] [--web]

The archive is Debian's Orthanc on loopback, killed (SIGKILL) at a moment drawn anew while objects are on their way, and
started again on the same storage. The sender is the courier of ``ucseg pacs listen`` with an outbox on disk, by
C-STORE, or by STOW-RS with --web; after every third restart it is thrown away too, as when the listener is killed, and
a new one reads the outbox again. What is sent are the results of made-up series, as the batch engine writes them.

`lost`: objects that the archive does not have in the end; `twice`: objects that it has more than once; `in_flight`:
restarts that came while an association or request was open.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.batch.exports import write_export, write_model
from tests.orthanc import Pacs
from tests.pacs.archive import TITLE, TestArchive, running_archive
from tests.pacs.programs import PacsPrograms, install_pacs_programs
from tests.processes import LOOPBACK, free_port
from ucseg_runtime.batch.export_index import index_export
from ucseg_runtime.batch.plan import BatchOptions, SeriesOutcome, plan_batch
from ucseg_runtime.batch.run import run_batch
from ucseg_runtime.batch.runners import LocalRunner
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.pacs.addresses import Address, DicomNode, WebArchive
from ucseg_runtime.pacs.archives import Archive, Connection, FoundSeries, SeriesFilter, Stored, archive_at
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.courier import Courier, CourierReport
from ucseg_runtime.pacs.objects import DicomObject, quiet_process
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.segmenting import result_objects
from ucseg_runtime.pacs.spool import Spool, opened_spool

SERIES_PER_RESTART = 4
_RESTARTS_PER_COURIER = 3
_LATEST_KILL_S = 0.1
_SENDING_TIMEOUT_S = 20.0
_BACK_OFF = BackOff(first_s=0.2, longest_s=1.0)


@dataclass
class Findings:
    """What was counted."""

    restarts: int = 0
    in_flight: int = 0
    objects: int = 0
    lost: int = 0
    twice: int = 0
    tries_in_vain: dict[str, int] = field(default_factory=dict)


@dataclass
class Watch:
    """An archive that says when something is being sent to it."""

    opening: Callable[[], Archive]
    sending: threading.Event = field(default_factory=threading.Event)

    def store(self, objects: Sequence[DicomObject], report: Callable[[Stored], None]) -> None:
        """See `Archive.store`."""
        self.sending.set()
        try:
            self.opening().store(objects, report)
        finally:
            self.sending.clear()

    def find(self, wanted: SeriesFilter) -> tuple[FoundSeries, ...]:
        """See `Archive.find`."""
        return self.opening().find(wanted)

    def fetch(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """See `Archive.fetch`."""
        return self.opening().fetch(study_uid, series_uid, folder)

    def refused_classes(self, classes: frozenset[tuple[str, str]]) -> Mapping[str, str]:
        """See `Archive.refused_classes`."""
        return self.opening().refused_classes(classes)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="restarts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="no restart is begun after this time")
    parser.add_argument("--web", action="store_true", help="send by STOW-RS instead of C-STORE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = restarts(
            install_pacs_programs(),
            Path(folder),
            arguments.n,
            random.Random(arguments.seed),  # noqa: S311  (moments to kill at, no secrets)
            web=arguments.web,
            minutes=arguments.minutes,
        )
    way = "STOW-RS" if arguments.web else "C-STORE"
    print(json.dumps(asdict(found) | {"by": way, "seconds": round(seconds, 1), "seed": arguments.seed}, indent=2))


def restarts(
    programs: PacsPrograms, folder: Path, count: int, rng: random.Random, *, web: bool = False, minutes: float = 15.0
) -> tuple[Findings, float]:
    """Restart the archive so many times; the findings, and how many seconds it took."""
    ports = Pacs(free_port(), free_port())
    address: Address = WebArchive(ports.url) if web else DicomNode(TITLE, LOOPBACK, ports.dicom_port)
    watch = Watch(lambda: archive_at(address, Connection(connect_s=2.0, answer_s=10.0)))
    found = Findings()
    storage = folder / "orthanc"
    storage.mkdir()
    with quiet_process(), opened_spool(folder / "spool", b"secret") as spool:
        expected = _queue_results(spool, folder, SERIES_PER_RESTART * count)
        found.objects = len(expected)
        begun = time.monotonic()
        while found.restarts < count and time.monotonic() - begun < 60.0 * minutes:
            with _courier(spool, watch, found):
                for _ in range(min(_RESTARTS_PER_COURIER, count - found.restarts)):
                    with running_archive(programs, storage, ports) as archive:
                        _kill_while_sending(archive, watch, rng, found)
        with running_archive(programs, storage, ports) as archive, _courier(spool, watch, found) as outbox:
            _wait_until_all_is_sent(outbox)
            there = Counter(archive.instance_uids())
    found.lost = len(expected - there.keys())
    found.twice = sum(number - 1 for number in there.values())
    return found, time.monotonic() - begun


def _queue_results(spool: Spool, folder: Path, series: int) -> set[str]:
    """Segment made-up series and put their results into the outbox; the UIDs of all objects."""
    model = load_model(write_model(folder / "model"))
    export = write_export(folder / "export", series, studies=series)
    inference, outputs, options = InferenceOptions(), OutputOptions(), BatchOptions()
    runner = LocalRunner(model, inference, outputs)
    plan = plan_batch(index_export(export), spool.results, model, inference, outputs, options, runner.engine())
    outbox, uids = Outbox(spool), set()

    def told(outcome: SeriesOutcome) -> None:
        objects = result_objects(outcome.folder)
        outbox.add(outcome.folder.name, outcome.folder, objects)
        uids.update(item.sop_uid for item in objects)

    run_batch(plan, runner, told)
    return uids


@contextmanager
def _courier(spool: Spool, watch: Watch, found: Findings) -> Iterator[Outbox]:
    """A courier that knows nothing but what is on the disk."""

    def failed(code: str) -> None:
        found.tries_in_vain[code] = found.tries_in_vain.get(code, 0) + 1

    report = CourierReport(lambda line: None, lambda: None, failed)
    outbox = Outbox(spool)
    with Courier(outbox, lambda: watch, report, _BACK_OFF):
        yield outbox


def _kill_while_sending(archive: TestArchive, watch: Watch, rng: random.Random, found: Findings) -> None:
    if not watch.sending.wait(_SENDING_TIMEOUT_S):
        raise TimeoutError("nothing is left to be sent: raise SERIES_PER_RESTART")
    time.sleep(rng.uniform(0.0, _LATEST_KILL_S))
    found.in_flight += watch.sending.is_set()
    archive.kill()
    found.restarts += 1


def _wait_until_all_is_sent(outbox: Outbox) -> None:
    deadline = time.monotonic() + _SENDING_TIMEOUT_S * 6
    while not all(item.is_done for item in outbox.all()):
        if time.monotonic() > deadline:
            raise TimeoutError("not everything was sent")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
