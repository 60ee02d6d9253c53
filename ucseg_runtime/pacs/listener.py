"""What a listener does between receiving and sending, in one thread: segment what is complete, remove what is sent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ucseg_runtime.errors import ArchiveError, BackendError, SpoolError, UcsegError
from ucseg_runtime.pacs.archives import Archive, SeriesFilter
from ucseg_runtime.pacs.arrivals import Arrivals, Clock
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.courier import Courier, Tell
from ucseg_runtime.pacs.leftovers import Leftovers
from ucseg_runtime.pacs.monitoring import Gauges, Metrics, State
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.reports import ReportFolder
from ucseg_runtime.pacs.segmenting import Method, RoundReport, Rounds
from ucseg_runtime.pacs.spool import STAGES, Spool, SpoolLimit

_LOOK_EVERY_S = 0.5
_RECOUNT_EVERY_S = 5.0
_STUCK_AFTER_S = 3600.0
_LEFTOVER_S = 600.0

_SEG_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
_PM_CLASS = "1.2.840.10008.5.1.4.1.1.30"
_SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"
_EXPLICIT = "1.2.840.10008.1.2.1"
_RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class Parts:
    """What a listener is made of.

    Attributes:
        spool: Its folder.
        limit: Of the folder.
        arrivals: What comes.
        outbox: What goes.
        courier: Who brings it.
        metrics: Counters.
        opening: Gives the archive that results go to.
        tell: A line for people.
        reports: Where reports are kept; None for nowhere.
    """

    spool: Spool
    limit: SpoolLimit
    arrivals: Arrivals
    outbox: Outbox
    courier: Courier
    metrics: Metrics
    opening: Callable[[], Archive]
    tell: Tell
    reports: ReportFolder | None = None


class Listener:
    """Runs until its thread is interrupted.

    Args:
        parts: What it is made of.
        method: How series are segmented.
        back_off: Between tries of an engine or disk that failed.
        clock: In s, never backwards.
    """

    def __init__(
        self, parts: Parts, method: Method, back_off: BackOff | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._parts = parts
        self._method = method
        self._back_off = back_off or BackOff()
        self._clock = clock
        report = RoundReport(self._tell, parts.metrics.ended, parts.metrics.decided, self._queued)
        self._rounds = Rounds(parts.spool, parts.outbox, report, parts.reports)
        self._failures = 0
        self._due = 0.0
        self._reason = ""
        self._leftovers = Leftovers(parts.spool.partial, _LEFTOVER_S, clock)
        self._counted = self._clock()
        self._looked = self._clock()
        self._waits: dict[str, int] = {}
        self._asked_for_label_maps = False
        self._paused = threading.Event()
        self._is_recovered = False

    def run(self) -> None:
        """Work until the thread is interrupted."""
        while True:
            self.step()
            self._paused.wait(_LOOK_EVERY_S)

    def step(self) -> None:
        """Everything that can be done just now; what cannot is put off.

        Raises:
            Exception: The courier has ended by a defect.
        """
        self._looked = self._clock()
        self._parts.courier.require_alive()
        if self._clock() < self._due:
            return
        try:
            self._recover()
            self._take_over_complete_series()
            self._take_back_refused_label_maps()
            self._remove_what_is_delivered()
            if self._clock() - self._counted >= _RECOUNT_EVERY_S:
                self._make_room()
            self._segment()
        except UcsegError as error:
            self._put_off(error)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            self._put_off(SpoolError(f"the spool cannot be written: {reason}.", hint="Make space."))
        else:
            self._failures, self._reason = 0, ""

    def state(self) -> State:
        """For the pages of `monitoring`."""
        dead = [] if self._parts.courier.is_alive else ["the courier has ended"]
        if self._clock() - self._looked > _STUCK_AFTER_S:
            dead.append("one series has taken more than an hour")
        not_ready = [] if self._parts.limit.has_room() else ["the spool is full"]
        waits = [f"series {key}: for {count} images, which the archive has" for key, count in self._waits.items()]
        waits += [f"series {key}: {reason}" for key, reason in self._parts.courier.reasons.items()]
        if self._reason:
            waits.append(self._reason)
        return State(tuple(dead), tuple(not_ready), tuple(waits))

    def gauges(self) -> Gauges:
        """For the pages of `monitoring`."""
        return Gauges(
            spool_bytes=self._parts.limit.used_bytes,
            spool_limit_bytes=self._parts.limit.limit_bytes,
            series={stage: len(self._parts.spool.keys(stage)) for stage in STAGES},
            waiting=len(self._parts.outbox),
            archive_reachable=self._parts.courier.is_archive_reachable,
        )

    def _tell(self, line: str) -> None:
        self._looked = self._clock()  # a long round is no sign of death as long as something comes of it
        self._parts.tell(line)

    def _queued(self) -> None:
        self._parts.courier.wake()
        self._remove_what_is_delivered()

    def _recover(self) -> None:
        """Segment again what no delivery is known of any more; once, after the start."""
        if not self._is_recovered:
            known = {delivery.key for delivery in self._parts.outbox.all()}
            for key in self._parts.spool.keys("segmented"):
                if key not in known:
                    self._parts.spool.move(key, "segmented", "ready")
            self._is_recovered = True

    def _take_over_complete_series(self) -> None:
        for judged in self._parts.arrivals.judge():
            if not self._parts.arrivals.hand_over(judged):
                continue
            if judged.state == "complete":
                self._parts.tell(f"series {judged.key}: complete with {judged.instances} images")
            else:
                self._parts.metrics.ended("incomplete")
                self._parts.tell(
                    f"series {judged.key}: failed: UCSEG-E115 {judged.instances} images came, and the archive has "
                    f"{judged.expected}. They are kept in failed/{judged.key}."
                )
        spool = self._parts.spool
        for key in set(spool.keys("ready")) & set(spool.keys("segmented")):  # more of it came after all
            spool.move(key, "segmented", "ready")
        waits = dict(self._parts.arrivals.waits)
        for key in waits.keys() - self._waits.keys():
            self._parts.tell(f"series {key}: waits for the rest of {waits[key]} images, which the archive has")
        self._waits = waits

    def _take_back_refused_label_maps(self) -> None:
        for delivery in self._parts.outbox.all():
            if delivery.label_maps_refused:
                self._method = self._method.as_binary()
                if delivery.key in self._parts.spool.keys("segmented"):
                    self._parts.spool.move(delivery.key, "segmented", "ready")
                self._parts.outbox.remove(delivery.key)

    def _remove_what_is_delivered(self) -> None:
        """Results first, so that a run that is killed in between finds the series again and delivers it once more."""
        spool = self._parts.spool
        for delivery in self._parts.outbox.all():
            if not delivery.is_done or spool.series("arriving", delivery.key).is_dir():
                continue  # of the latter more comes just now
            if not spool.series("ready", delivery.key).is_dir():
                spool.remove("segmented", delivery.key)
                spool.remove_results(delivery.folder)
            self._parts.outbox.remove(delivery.key)

    def _segment(self) -> None:
        self._negotiate()
        if not self._rounds.segment(self._method):
            raise BackendError("some series have to be tried again.")

    def _put_off(self, error: UcsegError) -> None:
        self._failures += 1
        wait_s = self._back_off.seconds(self._failures)
        self._due = self._clock() + wait_s
        self._reason = f"{error.code} {error}"
        self._parts.tell(f"{self._reason} Next try in {wait_s:.0f} s.")

    def _negotiate(self) -> None:
        """Ask the archive once for label maps, before any is made."""
        if self._asked_for_label_maps or self._method.outputs.seg_type != "labelmap":
            return
        if not self._parts.spool.keys("ready"):
            return
        try:
            refused = self._parts.opening().refused_classes(frozenset({(LABEL_MAP_CLASS, _RLE)}))
        except ArchiveError:
            return  # then it shows when they are sent
        self._asked_for_label_maps = True
        if refused:
            self._method = self._method.as_binary()
            self._parts.tell("the archive takes no label maps: segmentations are written as binary.")

    def _make_room(self) -> None:
        self._counted = self._clock()
        for key in self._parts.limit.drop_oldest_failures():
            self._parts.tell(f"series {key}: its images were deleted; failed series take too much room")
        self._leftovers.sweep()
        self._parts.limit.recount()


def count_at(
    opening: Callable[[], Archive], tell: Tell, clock: Clock = time.monotonic
) -> Callable[[str, str], int | None]:
    """A function that asks an archive how many instances it has of a series; one that is gone is left alone a while."""
    gone_until = 0.0

    def count(study_uid: str, series_uid: str) -> int | None:
        nonlocal gone_until
        if clock() < gone_until:
            return None
        try:
            found = opening().find(SeriesFilter(study_uid, series_uid))
        except ArchiveError as error:
            gone_until = clock() + 60.0
            tell(f"{error.code} {error} For a minute series count as complete by time alone.")
            return None
        return next((item.instances for item in found if item.series_uid == series_uid), None)

    return count


def classes_sent(method: Method) -> frozenset[tuple[str, str]]:
    """SOP classes with transfer syntaxes of what a method writes, as far as that is known before."""
    encoding = method.outputs.encoding
    seg = LABEL_MAP_CLASS if encoding.seg_type == "labelmap" else _SEG_CLASS
    uncertainty = _PM_CLASS if method.outputs.uncertainty == "pm" else _SEG_CLASS
    return frozenset({(seg, _EXPLICIT), (uncertainty, _EXPLICIT), (_SR_CLASS, _EXPLICIT)})
