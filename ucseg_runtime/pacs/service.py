"""A whole listener, put together and run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ucseg_runtime.backends.triton_calls import check_usable
from ucseg_runtime.errors import ArchiveError, SpoolError
from ucseg_runtime.pacs.addresses import Address
from ucseg_runtime.pacs.archives import Archive, Connection, archive_at
from ucseg_runtime.pacs.arrivals import Arrivals, Count, Patience
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.courier import Courier, CourierReport, Tell
from ucseg_runtime.pacs.listener import Listener, Parts, classes_sent, count_at
from ucseg_runtime.pacs.monitoring import Metrics, State, Watched, monitored
from ucseg_runtime.pacs.objects import quiet_process
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.packages import require_pacs_extra
from ucseg_runtime.pacs.reception import Receiver, ReceptionOptions, reception
from ucseg_runtime.pacs.reports import ReportFolder
from ucseg_runtime.pacs.segmenting import Method
from ucseg_runtime.pacs.spool import SpoolLimit, opened_spool
from ucseg_runtime.site_secret import site_secret


@dataclass(frozen=True)
class ListenOptions:
    """What an operator chooses of a listener.

    Attributes:
        forward: Archive that gets the results.
        spool: Folder.
        limit_bytes: Most that the spool may take.
        free_bytes: What must stay free on its disk, and on that of the reports.
        patience: When series are complete.
        count_from: Archive that is asked how many instances a series has; None for nobody.
        connection: How archives are spoken to.
        reception: How the storage service is offered.
        monitor: Host and port of the pages for monitoring; None for none.
        back_off: Between tries.
        reports: Folder for the reports, outside the spool; None for no reports.
    """

    forward: Address
    spool: Path
    limit_bytes: int = 50 * 10**9
    free_bytes: int = 10**9
    patience: Patience = Patience()
    count_from: Address | None = None
    connection: Connection = field(default_factory=Connection)
    reception: ReceptionOptions = ReceptionOptions()
    monitor: tuple[str, int] | None = None
    back_off: BackOff = BackOff()
    reports: Path | None = None


def listen(options: ListenOptions, method: Method, tell: Tell) -> None:
    """Receive, segment and send until the thread is interrupted. What is not done is done after the next start.

    Args:
        options: Of the listener.
        method: How series are segmented.
        tell: Told what happens, one line each; may be called from several threads.

    Raises:
        BackendUnavailableError: The extra is not installed, or a Triton server cannot be used as was said.
        SpoolError: The spool, a port or the folder for reports cannot be had.
        ArchiveRefusedError: Credentials or certificates cannot be used.
    """
    require_pacs_extra("pynetdicom", "dicomweb_client", "requests", "prometheus_client")
    if method.inference.server is not None:
        check_usable(method.inference.server)

    def opening() -> Archive:
        return archive_at(options.forward, options.connection)

    with ExitStack() as stack:
        stack.enter_context(quiet_process())
        spool = stack.enter_context(opened_spool(options.spool, site_secret()))
        limit = SpoolLimit(spool, options.limit_bytes, options.free_bytes)
        metrics = Metrics()
        outbox = Outbox(spool)
        arrivals = Arrivals(spool, options.patience, _count(options, tell))
        courier = Courier(outbox, opening, CourierReport(tell, metrics.sent, metrics.send_failed), options.back_off)
        parts = Parts(spool, limit, arrivals, outbox, courier, metrics, opening, tell, _report_folder(options))
        listener = Listener(parts, method, options.back_off)
        stack.enter_context(courier)
        receiver = Receiver(arrivals, limit, metrics, tell)
        door = stack.enter_context(reception(spool, receiver, options.reception))

        def state() -> State:
            found = listener.state()
            return found if door.is_alive else replace(found, dead=(*found.dead, "the storage service has ended"))

        if options.monitor is not None:
            watched = Watched(metrics, listener.gauges, state)
            page_port = stack.enter_context(monitored(*options.monitor, watched))
            tell(f"monitoring at http://{options.monitor[0]}:{page_port}/readyz, /healthz and /metrics")
        tell(f"listening as {options.reception.title} on port {door.port}; results go to {options.forward}")
        _tell_of_refused_classes(opening, method, tell)
        listener.run()


def _report_folder(options: ListenOptions) -> ReportFolder | None:
    if options.reports is None:
        return None
    if options.reports.resolve().is_relative_to(options.spool.resolve()):
        raise SpoolError(
            "the folder for reports lies in the spool, which it would fill.", hint="Give --reports a place of its own."
        )
    folder = ReportFolder(options.reports, options.free_bytes)
    folder.prepare()
    return folder


def _count(options: ListenOptions, tell: Tell) -> Count:
    archive = options.count_from
    if archive is None:
        return _nobody
    return count_at(lambda: archive_at(archive, options.connection), tell)


def _nobody(study_uid: str, series_uid: str) -> None:
    """Nobody can tell."""


def _tell_of_refused_classes(opening: Callable[[], Archive], method: Method, tell: Tell) -> None:
    """Before the first series, so that somebody can still do something about it."""
    try:
        refused = opening().refused_classes(classes_sent(method))
    except ArchiveError as error:
        tell(f"{error.code} {error} Results will wait for it.")
        return
    for name in refused.values():
        tell(f"UCSEG-E171 the archive does not take {name}: see --seg-type and --uncertainty.")
