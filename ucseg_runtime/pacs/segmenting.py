"""From series that are complete to results that have to be sent, with the batch engine."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ucseg_runtime.batch.export_index import ExportSeries, index_export
from ucseg_runtime.batch.plan import BatchOptions, SeriesOutcome, plan_batch
from ucseg_runtime.batch.run import STATE_FOLDER, run_batch
from ucseg_runtime.batch.runners import LocalRunner
from ucseg_runtime.batch.summary import decided_in
from ucseg_runtime.config import InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.decision import Outcome
from ucseg_runtime.errors import BackendError, BackendUnavailableError, ServerTimeoutError, UcsegError
from ucseg_runtime.model_folder import Model
from ucseg_runtime.neighbours import DIED_WRITING
from ucseg_runtime.pacs.attempts import MOST_ENDS, Attempts
from ucseg_runtime.pacs.monitoring import Ended
from ucseg_runtime.pacs.objects import DicomObject, dicom_object
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.reports import ReportFolder, reason_of
from ucseg_runtime.pacs.spool import Spool
from ucseg_runtime.publish import PREVIEW, REPORT, SEGMENTATION, STRUCTURES, UNCERTAINTY

SENT_NAMES = (SEGMENTATION, UNCERTAINTY, REPORT, STRUCTURES, PREVIEW)
"""Which of the results are sent, in this order: the report refers to what goes before it."""

_ATTEMPTS = "attempts.json"

_PASSING_CODES = (
    *(cls.default_code for cls in (BackendError, BackendUnavailableError, ServerTimeoutError)),
    DIED_WRITING,
)

MOST_TRIES = 5
"""Of a series whose engine fails or whose writer dies; the other failures would be the same the next time."""


@dataclass(frozen=True)
class Method:
    """How series are segmented.

    Attributes:
        model: Verified model folder.
        inference: Engine, precision, threads; or a server.
        outputs: Which objects are written.
        wanted: What series may lack.
    """

    model: Model
    inference: InferenceOptions
    outputs: OutputOptions
    wanted: InputOptions

    def as_binary(self) -> Method:
        """The same for archives that take no label maps."""
        encoding = replace(self.outputs.encoding, seg_type="binary", compression="auto")
        return replace(self, outputs=replace(self.outputs, encoding=encoding))


@dataclass(frozen=True)
class RoundReport:
    """Who is told what.

    Attributes:
        tell: A line for people.
        ended: What became of a series.
        decided: What is to be done with the result of one that was segmented.
        queued: Results wait to be sent.
    """

    tell: Callable[[str], None]
    ended: Callable[[Ended], None]
    decided: Callable[[Outcome], None]
    queued: Callable[[], None]


class Rounds:
    """Segments whatever is ready, again and again.

    Args:
        spool: Where series lie and results go.
        outbox: Gets the results.
        report: Who is told.
        reports: Where reports are kept that people look at; None for nowhere.
    """

    def __init__(self, spool: Spool, outbox: Outbox, report: RoundReport, reports: ReportFolder | None = None) -> None:
        self._spool = spool
        self._attempts = Attempts(spool.root / _ATTEMPTS)
        # The spool is ours alone, so a lease in it is that of a listener which is gone, maybe on another machine.
        shutil.rmtree(spool.results / STATE_FOLDER, ignore_errors=True)
        self._outbox = outbox
        self._report = report
        self._reports = reports
        self._tries: defaultdict[str, int] = defaultdict(int)

    def segment(self, method: Method) -> bool:
        """Segment series that are ready; False where some have to be tried again later.

        All of them, but those alone during which the process has ended before, see `Attempts`.

        Raises:
            OutputError: Results cannot be written at all.
            ModelError: The engine cannot be used for the model.
            BackendError: It cannot be opened, or the server is gone.
        """
        keys = self._attempts.next_round(self._ready())
        if not keys:
            return True
        self._attempts.begin(keys)
        try:
            return self._segmented(keys, method)
        except BaseException as end:
            if isinstance(end, Exception) and not isinstance(end, UcsegError | OSError):
                raise  # a defect ends the process, and counts
            self._attempts.end(keys)
            raise

    def _ready(self) -> list[str]:
        """Series to be segmented; what cannot be is put aside."""
        keys = []
        for key in self._spool.keys("ready"):
            if not self._spool.files("ready", key):
                self._spool.remove("ready", key)
            elif self._attempts.ends(key) >= MOST_ENDS:
                self._fail(key, "UCSEG-E199", f"ucseg ended {MOST_ENDS} times while it was segmented.")
                self._attempts.end([key])
            else:
                keys.append(key)
        return keys

    def _segmented(self, keys: frozenset[str], method: Method) -> bool:
        index = index_export(self._spool.folder("ready"))
        index = replace(index, series=tuple(item for item in index.series if self._key(item) in keys))
        options = BatchOptions(wanted=method.wanted)
        runner = LocalRunner(method.model, method.inference, method.outputs)
        results, engine = self._spool.results, runner.engine()
        plan = plan_batch(index, results, method.model, method.inference, method.outputs, options, engine)
        others: dict[str, SeriesOutcome] = {}
        done: set[str] = set()
        again: set[str] = set()

        def told(outcome: SeriesOutcome) -> None:
            key = self._key(outcome.series)
            if outcome.state in ("done", "segmented"):
                self._queue(key, outcome.folder)
                done.add(key)
            elif self._is_for_another_try(key, outcome):
                again.add(key)
            else:
                others[key] = outcome

        run_batch(plan, runner, told)
        for key in keys - done - again:
            self._settle(key, others)
        self._attempts.end(keys)
        return not again

    def _key(self, series: ExportSeries) -> str:
        return self._spool.series_key(series.study_uid, series.series_uid)

    def _queue(self, key: str, folder: Path) -> None:
        self._keep_report(key, folder)  # first: the results are deleted as soon as they are sent
        self._outbox.add(key, folder, result_objects(folder))
        self._spool.move(key, "ready", "segmented")
        self._spool.remove("failed", key)  # of an earlier try with other images
        self._tries.pop(key, None)
        self._report.ended("segmented")
        decision = decided_in(folder)
        if decision is not None:
            self._report.decided(decision)
        self._report.tell(f"series {key}: segmented{'' if decision is None else f', {decision}'}")
        self._report.queued()

    def _keep_report(self, key: str, folder: Path) -> None:
        """Results do not wait for a report: an archive that is to have them matters more."""
        if self._reports is None:
            return
        try:
            self._reports.keep(key, folder)
        except OSError as error:
            self._report.tell(f"series {key}: its report is not kept: {reason_of(error)}.")

    def _is_for_another_try(self, key: str, outcome: SeriesOutcome) -> bool:
        """Whether it may do better the next time, as where an engine has failed, and did not fail too often yet.

        Told at once: a server that is gone takes its time over every series of a round, and who waits for none of them
        to be told would take the listener for dead.
        """
        if not outcome.code.startswith(_PASSING_CODES) or self._tries[key] >= MOST_TRIES - 1:
            return False
        self._tries[key] += 1
        self._report.tell(f"series {key}: {outcome.code} {outcome.reason} It will be tried again.")
        return True

    def _settle(self, key: str, others: Mapping[str, SeriesOutcome]) -> None:
        """Put a series without results where it belongs."""
        outcome = others.get(key)
        if outcome is None:
            self._fail(key, "UCSEG-E101", "none of its files can be read any more.")
        elif outcome.state == "unsuitable":
            self._spool.remove("ready", key)
            self._report.ended("unsuitable")
            self._report.tell(f"series {key}: left alone: {outcome.code} {outcome.reason}")
        else:
            self._fail(key, outcome.code, outcome.reason)

    def _fail(self, key: str, code: str, reason: str) -> None:
        self._tries.pop(key, None)
        self._spool.fail(key, "ready", {"code": code, "message": reason})
        self._report.ended("failed")
        self._report.tell(f"series {key}: failed: {code} {reason} Its images are kept in failed/{key}.")


def result_objects(folder: Path) -> tuple[DicomObject, ...]:
    """The DICOM objects among some results, in the order in which they are sent.

    Raises:
        RefusedFileError: One of them is damaged.
        OSError: One of them cannot be looked at.
    """
    return tuple(dicom_object(folder / name) for name in SENT_NAMES if (folder / name).is_file())
