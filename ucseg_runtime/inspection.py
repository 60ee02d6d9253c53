"""What an input holds and what would become of it, without decoding a pixel."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ucseg_runtime.config import WHATEVER_FITS, InputOptions
from ucseg_runtime.dicom.instances import Series
from ucseg_runtime.dicom.selection import Selection, explained, select_series, unusable_because
from ucseg_runtime.dicom.series import SkippedFile
from ucseg_runtime.dicom.sources import opened_input
from ucseg_runtime.errors import InputError, UcsegError
from ucseg_runtime.inputs import scanned
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.series_rules import Judgement

Verdict = Literal["used", "rejected"]


@dataclass(frozen=True)
class SeriesReport:
    """One series of an input.

    Attributes:
        study: Ordinal of its study within the input, from 1.
        series_uid: (0020,000E), or a stand-in; what ``--series`` takes.
        series_number: (0020,0011).
        modality: (0008,0060).
        files: Number of files.
        rows: Of each image.
        columns: Of each image.
        verdict: Whether it would be segmented.
        reason: Why it would not; notes on what was put right where it would.
        checks: Every check and every rule with its outcome.
    """

    study: int
    series_uid: str
    series_number: int | None
    modality: str
    files: int
    rows: int
    columns: int
    verdict: Verdict
    reason: str
    checks: tuple[Judgement, ...]


@dataclass(frozen=True)
class InputReport:
    """Everything that an input holds.

    Attributes:
        series: Every series, in a fixed order.
        skipped: Files that belong to no series.
        names: Of all files, by ordinal; they can hold patient data.
        error: Why nothing would be segmented; None where one series would be.
    """

    series: tuple[SeriesReport, ...]
    skipped: tuple[SkippedFile, ...]
    names: tuple[str, ...] = field(repr=False)
    error: UcsegError | None

    def skipped_by_reason(self) -> dict[tuple[str, str], int]:
        """Number of skipped files by code and reason."""
        return dict(Counter((item.code, item.reason) for item in self.skipped))

    def as_json(self) -> dict[str, object]:
        """The report for machines, without names of files."""
        return {
            "series": [asdict(row) for row in self.series],
            "skipped": [asdict(item) for item in self.skipped],
            "error": self.error.as_json() if self.error else None,
        }


def inspect_input(path: Path, spec: ModelSpec, wanted: InputOptions = WHATEVER_FITS) -> InputReport:
    """Scan an input and judge every series as `segment_series` would.

    Args:
        path: Folder, DICOM file, DICOMDIR or zip archive.
        spec: The model.
        wanted: What the caller insists on, and allows.

    Raises:
        InputError: Nothing in the input is readable as DICOM.
        OutputError: There is no room for what an archive holds.
    """
    wanted = wanted.with_rules(spec.series_rules())
    with opened_input(path) as files:
        found = scanned(files, spec, wanted)
    studies = {uid: ordinal for ordinal, uid in enumerate(dict.fromkeys(s.study_uid for s in found.series), start=1)}
    error: InputError | None = None
    try:
        verdicts = _verdicts(select_series(found, spec.modality, wanted, spec.image_kind))
    except InputError as raised:
        error = raised
        verdicts = {id(series): ("rejected", _why_not(series, spec, wanted)) for series in found.series}
    rows = (
        _report(
            series,
            studies[series.study_uid],
            explained(series, spec.modality, wanted, spec.image_kind),
            *verdicts[id(series)],
        )
        for series in found.series
    )
    return InputReport(tuple(rows), found.skipped, tuple(file.name for file in files), error)


def _verdicts(selection: Selection) -> dict[int, tuple[Verdict, str]]:
    """Verdict and reason by identity of the series."""
    verdicts: dict[int, tuple[Verdict, str]] = {
        id(rejected.series): ("rejected", f"{rejected.code} {rejected.reason}") for rejected in selection.rejected
    }
    verdicts[id(selection.chosen)] = ("used", " ".join(selection.chosen.notes))
    return verdicts


def _why_not(series: Series, spec: ModelSpec, wanted: InputOptions) -> str:
    failure = unusable_because(series, spec.modality, wanted, spec.image_kind)
    return f"{failure.code} {failure}" if failure else "Not the series that was asked for."


def _report(series: Series, study: int, checks: tuple[Judgement, ...], verdict: Verdict, reason: str) -> SeriesReport:
    return SeriesReport(
        study=study,
        series_uid=series.series_uid,
        series_number=series.series_number,
        modality=series.modality,
        files=series.number_of_instances,
        rows=series.rows,
        columns=series.columns,
        verdict=verdict,
        reason=reason,
        checks=checks,
    )
