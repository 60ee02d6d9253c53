"""Sends what the outbox holds, in a thread of its own, and never gives up.

An archive that does not answer is left alone for a while, all deliveries together. One delivery that is refused waits
alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ucseg_runtime.dicom.headers import RefusedFileError
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError, UcsegError
from ucseg_runtime.pacs.archives import Archive, Stored
from ucseg_runtime.pacs.arrivals import Clock
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.objects import LABEL_MAP_CLASS, DicomObject, dicom_object
from ucseg_runtime.pacs.outbox import Delivery, Outbox

Tell = Callable[[str], None]
Opening = Callable[[], Archive]

_LOOK_EVERY_S = 0.5
_JOIN_S = 5.0


@dataclass(frozen=True)
class CourierReport:
    """Who is told what; every function may be called from the courier's thread.

    Attributes:
        tell: A line for people.
        sent: One more object is there.
        failed: A try was in vain, with the code of the error.
    """

    tell: Tell
    sent: Callable[[], None]
    failed: Callable[[str], None]


class Courier:
    """Used with ``with``: the thread runs as long as the block does.

    Args:
        outbox: What has to be sent.
        opening: Gives the archive, with fresh credentials.
        report: Who is told.
        back_off: Between tries.
        clock: In s, never backwards.
    """

    def __init__(
        self,
        outbox: Outbox,
        opening: Opening,
        report: CourierReport,
        back_off: BackOff | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._opening = opening
        self._report = report
        self._back_off = back_off or BackOff()
        self._clock = clock
        self._due: dict[str, float] = {}
        self._unreachable = 0
        self._archive_due = 0.0
        self._reasons: dict[str, str] = {}
        self._defects: list[Exception] = []  # at most one
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Courier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._wake.set()
        self._thread.join(_JOIN_S)  # what is being sent then is sent again by the next process

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_archive_reachable(self) -> bool:
        """Whether the archive answered last time."""
        return not self._unreachable

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why deliveries were not sent when it was tried last."""
        return MappingProxyType(dict(self._reasons))

    def require_alive(self) -> None:
        """Check that the thread has not ended by a defect.

        Raises:
            Exception: The defect.
        """
        for defect in self._defects:
            raise defect

    def wake(self) -> None:
        """Something new is to be sent."""
        self._wake.set()

    def send_due(self) -> None:
        """Try every delivery that is due, once."""
        for delivery in self._outbox.all():
            now = self._clock()
            if self._ended.is_set() or now < self._archive_due:
                return
            if not (delivery.is_done or delivery.label_maps_refused) and now >= self._due.get(delivery.key, 0.0):
                self._try(delivery)

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._wake.clear()
                self._send_due_or_wait()
                self._wake.wait(_LOOK_EVERY_S)
        except Exception as defect:  # noqa: BLE001  the thread that looks after this one raises it again
            self._defects.append(defect)

    def _send_due_or_wait(self) -> None:
        try:
            self.send_due()
        except OSError as error:  # of the outbox's own files: the disk is full
            wait_s = self._back_off.seconds(1)
            self._archive_due = self._clock() + wait_s
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            self._report.tell(f"UCSEG-E172 the outbox cannot be written: {reason}. Next try in {wait_s:.0f} s.")

    def _try(self, delivery: Delivery) -> None:
        """Send what is left of a delivery."""
        refused: list[Stored] = []

        def told(stored: Stored) -> None:
            if stored.is_there:
                self._outbox.sent(delivery.key, stored.item.sop_uid)
                self._report.sent()
            else:
                refused.append(stored)

        try:
            self._opening().store(self._objects(delivery), told)
        except ArchiveUnreachableError as error:
            self._archive_is_gone(delivery, error)
            return
        except (UcsegError, OSError, RefusedFileError) as error:
            self._refused(delivery, error)
            return
        self._archive_answers()
        if any(item.class_refused and item.item.sop_class_uid == LABEL_MAP_CLASS for item in refused):
            self._outbox.refuse_label_maps(delivery.key)
            self._report.tell(f"series {delivery.key}: the archive takes no label maps; it is segmented as binary.")
        elif refused:
            self._refused(delivery, ArchiveRefusedError(refused[0].reason))
        else:
            self._reasons.pop(delivery.key, None)
            self._due.pop(delivery.key, None)
            self._report.tell(f"series {delivery.key}: the archive has all {len(delivery.files)} objects")

    def _objects(self, delivery: Delivery) -> list[DicomObject]:
        return [dicom_object(path) for path in self._outbox.paths(delivery)]

    def _archive_answers(self) -> None:
        if self._unreachable:
            self._report.tell("the archive answers again")
        self._unreachable = 0

    def _archive_is_gone(self, delivery: Delivery, error: ArchiveUnreachableError) -> None:
        self._unreachable += 1
        self._outbox.failed(delivery.key)
        self._reasons[delivery.key] = str(error)
        wait_s = self._back_off.seconds(self._unreachable)
        self._archive_due = self._clock() + wait_s
        self._report.failed(error.code)
        waiting = sum(not item.is_done for item in self._outbox.all())
        self._report.tell(f"{error.code} {error} Next try in {wait_s:.0f} s; {waiting} series wait for it.")

    def _refused(self, delivery: Delivery, error: Exception) -> None:
        self._outbox.failed(delivery.key)
        code = error.code if isinstance(error, UcsegError) else "UCSEG-E150"
        reason = str(error) if isinstance(error, UcsegError) else "the results cannot be read."
        self._reasons[delivery.key] = reason
        wait_s = self._back_off.seconds(delivery.tries + 1)
        self._due[delivery.key] = self._clock() + wait_s
        self._report.failed(code)
        self._report.tell(f"series {delivery.key}: {code} {reason} Next try in {wait_s:.0f} s.")
