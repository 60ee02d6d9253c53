"""The work between receiving and sending: late images, refused label maps, engines that fail, and what is removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom
import pytest

from tests.batch.exports import TINY
from tests.pacs.made_up import Clock, MadeUpArchive
from tests.phantoms import write_ct_series
from tests.processes import LOOPBACK, free_port
from ucseg_runtime.batch.plan import BatchPlan, SeriesOutcome
from ucseg_runtime.batch.run import run_batch
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, OutputOptions, SegEncoding
from ucseg_runtime.errors import BackendError, OutputError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.pacs.arrivals import Arrivals, Patience
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.courier import Courier, CourierReport
from ucseg_runtime.pacs.listener import Listener, Parts
from ucseg_runtime.pacs.monitoring import Metrics
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS, read_header
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.reports import ReportFolder
from ucseg_runtime.pacs.segmenting import MOST_TRIES, Method
from ucseg_runtime.pacs.spool import Spool, SpoolLimit, opened_spool
from ucseg_runtime.server_options import TritonMode, TritonServer, server_address

pytestmark = [pytest.mark.slow]

SERIES = replace(TINY, study="listened")
EMBEDDED = InferenceOptions(engine="openvino")
EVERY_SECOND = BackOff(1.0, 1.0, lambda: 1.0)


@dataclass
class Bench:
    """A listener whose parts can be looked at, and whose clock stands still."""

    spool: Spool
    archive: MadeUpArchive
    clock: Clock
    outbox: Outbox
    arrivals: Arrivals
    courier: Courier
    listener: Listener
    told: list[str] = field(default_factory=list)

    def receive(self, files: list[Path]) -> None:
        """Take in files, and let the quiet time pass."""
        for path in files:
            partial = Path(shutil.copy(path, self.spool.partial))
            self.arrivals.take(partial, read_header(partial))
        self.clock.now += 60.0


@contextmanager
def bench(
    root: Path,
    model: Path,
    archive: MadeUpArchive,
    outputs: OutputOptions,
    inference: InferenceOptions = EMBEDDED,
    reports: ReportFolder | None = None,
) -> Iterator[Bench]:
    with opened_spool(root, b"secret") as spool:
        clock, outbox, metrics = Clock(), Outbox(spool), Metrics()
        told: list[str] = []
        arrivals = Arrivals(spool, Patience(), lambda study, series: None, clock)
        report = CourierReport(told.append, metrics.sent, metrics.send_failed)
        courier = Courier(outbox, lambda: archive, report, EVERY_SECOND, clock)
        limit = SpoolLimit(spool, 10**9, 0)
        parts = Parts(spool, limit, arrivals, outbox, courier, metrics, lambda: archive, told.append, reports)
        method = Method(load_model(model), inference, outputs, WHATEVER_FITS)
        listener = Listener(parts, method, EVERY_SECOND, clock)
        yield Bench(spool, archive, clock, outbox, arrivals, courier, listener, told)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_ct_series(tmp_path / "series", SERIES)


def nothing_left(spool: Spool) -> bool:
    return not any(
        any(path.iterdir()) for path in (spool.root / name for name in ("arriving", "ready", "segmented", "outbox"))
    )


def test_images_stay_until_the_archive_has_all_results(tiny_model: Path, tmp_path: Path, files: list[Path]) -> None:
    archive = MadeUpArchive(breaks_after=2)
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.receive(files)
        it.listener.step()
        it.courier.send_due()
        it.listener.step()
        (key,) = it.spool.keys("segmented")
        assert len(it.spool.files("segmented", key)) == 6
        assert len(archive.there) == 2
        archive.breaks_after = -1
        it.clock.now += 2.0
        it.courier.send_due()
        it.listener.step()

        assert nothing_left(it.spool)
        assert sorted(archive.there.values()) == [1, 1, 1]


def test_label_maps_that_are_refused_when_they_are_sent_come_as_binary(
    tiny_model: Path, tmp_path: Path, files: list[Path]
) -> None:
    archive = MadeUpArchive(takes_label_maps=False, tells_of_label_maps=False)
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions(SegEncoding("labelmap"))) as it:
        it.receive(files)
        for _ in range(2):
            it.listener.step()
            it.courier.send_due()
        it.listener.step()

        assert nothing_left(it.spool)
        assert len(archive.there) == 3
        assert LABEL_MAP_CLASS not in archive.classes
        assert any("segmented as binary" in line for line in it.told)


def test_images_that_come_late_are_segmented_with_the_others(
    tiny_model: Path, tmp_path: Path, files: list[Path]
) -> None:
    archive = MadeUpArchive(errors=[])
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.receive(files[:5])
        it.listener.step()
        (delivery,) = it.outbox.all()
        report = it.spool.results / delivery.folder / "segmentation.dcm"
        before = pydicom.dcmread(report).SOPInstanceUID
        it.receive(files[5:])
        it.listener.step()
        it.courier.send_due()
        it.listener.step()

        assert nothing_left(it.spool)
        assert len(archive.there) == 3
        assert before not in archive.there, "what was made of five images was never sent"


def test_engine_that_fails_is_waited_for_and_said(
    tiny_model: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = MadeUpArchive()
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.receive(files)
        with monkeypatch.context() as patched:
            patched.setattr("ucseg_runtime.pacs.segmenting.run_batch", _raising(BackendError("the server is gone.")))
            it.listener.step()
            it.listener.step()
        assert [line for line in it.told if "E140" in line] == ["UCSEG-E140 the server is gone. Next try in 1 s."]
        assert it.listener.state().waits == ("UCSEG-E140 the server is gone.",)
        it.clock.now += 1.0
        it.listener.step()

        assert len(it.outbox) == 1
        assert it.listener.state().waits == ()


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_server_that_is_away_for_longer_than_any_try_loses_no_series(
    tiny_model: Path, tmp_path: Path, files: list[Path], mode: TritonMode
) -> None:
    nobody = server_address(f"grpc://{LOOPBACK}:{free_port()}")
    away = InferenceOptions(server=TritonServer((nobody,), mode, timeout_s=0.1))
    archive = MadeUpArchive()
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions(), away) as it:
        it.receive(files)
        for _ in range(MOST_TRIES + 1):
            it.listener.step()
            it.clock.now += 1.0
        (reason,) = it.listener.state().waits

        assert it.spool.keys("failed") == []
        assert len(it.spool.files("ready", *it.spool.keys("ready"))) == 6
        assert reason.startswith("UCSEG-E140 no answer after")
        assert str(nobody) in reason
        assert sum("E140" in line and "Next try in 1 s." in line for line in it.told) == MOST_TRIES + 1
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.listener.step()
        it.courier.send_due()

        assert sorted(archive.there.values()) == [1, 1, 1]


@pytest.mark.parametrize("code", ["UCSEG-E143", "UCSEG-E154"])
def test_series_that_may_do_better_the_next_time_is_told_before_the_round_is_over(
    tiny_model: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Each may take as long as a server that is gone is waited for, and the listener must not look dead meanwhile."""
    told_meanwhile: list[list[str]] = []
    with bench(tmp_path / "spool", tiny_model, MadeUpArchive(), OutputOptions()) as it:
        it.receive(files)

        def run(plan: BatchPlan, runner: object, report: Callable[[SeriesOutcome], None]) -> None:
            (series,) = plan.series
            report(SeriesOutcome(series, tmp_path, "failed", code, "no answer."))
            told_meanwhile.append(it.told[:])

        with monkeypatch.context() as patched:
            patched.setattr("ucseg_runtime.pacs.segmenting.run_batch", run)
            for _ in range(MOST_TRIES):
                it.listener.step()
                it.clock.now += 1.0

        again = [line for line in told_meanwhile[0] if f"{code} no answer. It will be tried again." in line]
        assert len(again) == 1
        assert len(it.spool.keys("failed")) == 1


def test_report_that_finds_no_room_is_said_and_holds_no_result_up(
    tiny_model: Path, tmp_path: Path, files: list[Path]
) -> None:
    archive = MadeUpArchive()
    reports = ReportFolder(tmp_path / "reports", free_bytes=10**18)
    reports.prepare()
    with_report = OutputOptions(extras=frozenset({"report"}))
    with bench(tmp_path / "spool", tiny_model, archive, with_report, reports=reports) as it:
        it.receive(files)
        it.listener.step()
        it.courier.send_due()
        it.listener.step()

        assert sum("its report is not kept: No space left on device." in line for line in it.told) == 1
        assert list(reports.root.iterdir()) == []
        assert sorted(archive.there.values()) == [1, 1, 1]
        assert nothing_left(it.spool)


def test_report_of_a_series_takes_the_place_of_the_one_before(
    tiny_model: Path, tmp_path: Path, files: list[Path]
) -> None:
    reports = ReportFolder(tmp_path / "reports")
    reports.prepare()
    with_report = OutputOptions(extras=frozenset({"report"}))
    with bench(tmp_path / "spool", tiny_model, MadeUpArchive(errors=[]), with_report, reports=reports) as it:
        it.receive(files[:5])
        it.listener.step()
        (page,) = reports.root.iterdir()
        before = page.read_bytes()
        (reports.root / f".{page.name}-0123").write_bytes(b"half")
        it.receive(files[5:])
        it.listener.step()
        reports.prepare()

        assert list(reports.root.iterdir()) == [page]
        assert page.read_bytes() != before


def test_full_disk_while_results_are_written_is_a_wait_and_no_loss(
    tiny_model: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path / "spool", tiny_model, MadeUpArchive(), OutputOptions()) as it:
        it.receive(files)
        with monkeypatch.context() as patched:
            patched.setattr("ucseg_runtime.pacs.segmenting.run_batch", _raising(OutputError("no space.")))
            it.listener.step()
        with monkeypatch.context() as patched:
            patched.setattr("ucseg_runtime.pacs.segmenting.run_batch", _raising(OSError(28, "full")))
            it.clock.now += 1.0
            it.listener.step()
        assert (
            "UCSEG-E172 the spool cannot be written: No space left on device. Make space. Next try in 1 s." in it.told
        )
        it.clock.now += 1.0
        it.listener.step()

        assert len(it.outbox) == 1


def test_series_of_which_no_file_can_be_read_any_more_is_put_aside(
    tiny_model: Path, tmp_path: Path, files: list[Path]
) -> None:
    with bench(tmp_path / "spool", tiny_model, MadeUpArchive(), OutputOptions()) as it:
        it.receive(files)
        key = it.spool.keys("arriving")[0]
        for path in it.spool.files("arriving", key):
            path.write_bytes(b"garbage")
        it.listener.step()

        assert it.spool.keys("failed") == [key]
        assert any(f"series {key}: failed: UCSEG-E101" in line for line in it.told)


def _raising(error: Exception) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


def test_series_that_ends_the_process_is_tried_alone_and_then_put_aside(
    tiny_model: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly, harmless = replace(SERIES, study="deadly"), SERIES
    deadly_files = write_ct_series(tmp_path / "deadly", deadly)
    archive = MadeUpArchive()
    rounds: list[int] = []
    for start in range(8):
        with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
            if start == 0:
                it.receive([*deadly_files, *files])

            def run(plan: BatchPlan, *more: object) -> None:
                rounds.append(len(plan.series))
                if any(item.series_uid == deadly.series_uid for item in plan.series):
                    raise AssertionError("a defect, which ends the process")
                run_batch(plan, *more)  # type: ignore[arg-type]

            with monkeypatch.context() as patched:
                patched.setattr("ucseg_runtime.pacs.segmenting.run_batch", run)
                for _ in range(3):
                    try:
                        it.listener.step()
                    except AssertionError:
                        break
            it.courier.send_due()

    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        assert it.spool.keys("failed") == [it.spool.series_key(deadly.study_uid, deadly.series_uid)]
        assert len(archive.there) == 3, f"the results of the harmless one, {harmless.study}"
    assert rounds[:2] == [2, 2]
    assert set(rounds[2:]) == {1}


def test_delivery_that_is_lost_is_made_again(tiny_model: Path, tmp_path: Path, files: list[Path]) -> None:
    archive = MadeUpArchive()
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.receive(files)
        it.listener.step()
        (path,) = it.spool.outbox.iterdir()
        path.write_text("{")
    with bench(tmp_path / "spool", tiny_model, archive, OutputOptions()) as it:
        it.listener.step()
        it.courier.send_due()
        it.listener.step()

        assert nothing_left(it.spool)
        assert sorted(archive.there.values()) == [1, 1, 1]


def test_lease_of_a_listener_that_is_gone_holds_nobody_up(tiny_model: Path, tmp_path: Path) -> None:
    leases = tmp_path / "spool" / "results" / ".ucseg-batch" / "leases"
    leases.mkdir(parents=True)
    with bench(tmp_path / "spool", tiny_model, MadeUpArchive(), OutputOptions()):
        assert not leases.exists()
