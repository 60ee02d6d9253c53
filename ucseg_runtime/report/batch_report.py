"""The page of a batch: every case that lies in a folder of results, those that need a look first.

Made from what lies there alone, records and tables of all runs and shards, so that it can be made again at any time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from ucseg_runtime.errors import OutputError
from ucseg_runtime.publish import PAGE, RECORD, THUMBNAIL, locked, reported_as_output_error
from ucseg_runtime.report.page import GENERATOR, Content, document, facts, node, number, page_text, picture, table
from ucseg_runtime.safe_files import replace_checked

INDEX = "index.html"

MOST_PREVIEWS = 500
"""Cases with a small picture; with more of them the page would take minutes to open."""

_ORDER = {"reject": 0, "review": 1, "accept": 3}
_NO_DECISION = 2
_MARK = f'<meta name="generator" content="{GENERATOR}">'.encode()
_MARK_WITHIN_BYTES = 4096


@dataclass(frozen=True)
class Case:
    """One series with results.

    Attributes:
        place: Its folder, from that of the results on: study and series.
        record: What its record says.
        page: Link to its report; empty where there is none.
    """

    place: str
    record: Mapping[str, Any]  # parsed JSON
    page: str

    @property
    def decision(self) -> Mapping[str, Any] | None:
        """What was decided; None where nothing was."""
        return self.record.get("decision")

    @property
    def mean_uncertainty(self) -> float | None:
        """Over all segments, each counted by its size; None where nothing was found."""
        found = [item for item in self.record["measurements"] if item["mean_uncertainty"] is not None]
        sizes = [item.get("voxels", 1) for item in found]
        if not sum(sizes):
            return None
        return float(sum(n * item["mean_uncertainty"] for n, item in zip(sizes, found, strict=True)) / sum(sizes))

    @property
    def urgency(self) -> tuple[int, float, str]:
        """Sorts those first that need a look: by outcome, then by score or mean uncertainty; nothing found is worst."""
        if self.decision is not None:
            rank, doubt = _ORDER.get(self.decision["outcome"], _NO_DECISION), self.decision["score"]
        else:
            rank, doubt = _NO_DECISION, 1.0 if self.mean_uncertainty is None else self.mean_uncertainty
        return rank, -doubt, self.place


@dataclass(frozen=True)
class Failure:
    """One series that the last run over it left without results.

    Attributes:
        place: Where they would be.
        state: ``failed``, ``unsuitable`` or ``unsettled``.
        code: Stable identifier of the reason.
        reason: For people.
    """

    place: str
    state: str
    code: str
    reason: str


def check_index(out: Path) -> None:
    """Check before any work that the page may be written.

    Raises:
        OutputError: The folder holds another page of this name.
    """
    if (out / INDEX).exists() and not is_index(out / INDEX):
        raise OutputError(
            f"the folder of results holds an {INDEX} that ucseg did not write.", hint="Move it, or give another --out."
        )


def is_index(path: Path) -> bool:
    """Whether a file is a page of a batch that was written before."""
    with reported_as_output_error():
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return _MARK in stream.read(_MARK_WITHIN_BYTES)


def write_index(out: Path) -> Path:
    """Write the page anew; several runners may do so at the same time.

    Args:
        out: Folder of results.

    Returns:
        The page.

    Raises:
        OutputError: It cannot be written.
    """
    with reported_as_output_error(), locked(out):  # what is read last is written last
        replace_checked(out / INDEX, batch_page(out))
    return out / INDEX


def batch_page(out: Path) -> bytes:
    """The page, HTML in UTF-8; the same as long as the results are.

    Args:
        out: Folder of results.
    """
    failures = {item.place: item for item in _failures(out)}
    cases = sorted((item for item in _cases(out) if item.place not in failures), key=lambda item: item.urgency)
    failed = [item for item in failures.values() if item.state == "failed"]
    others = [item for item in failures.values() if item.state != "failed"]
    body = [
        node(
            "header",
            node("h1", "Segmentation reports"),
            node("p", "Research use only. Not a medical device, not for clinical use.", class_="warning"),
            facts(_counts(cases, failed, others)),
        ),
        node(
            "main",
            *_failed("failed", "Failed", failed),
            _case_section(out, cases),
            *_failed("left-out", "Left out", others),
        ),
    ]
    return document("Segmentation reports", body, page_text("page.css"))


def _cases(out: Path) -> Iterator[Case]:
    for path in sorted(out.glob(f"*/*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):
            continue  # not whole, or being replaced: whoever segments the series makes the page anew
        if isinstance(record, dict) and {"measurements", "notes"} <= record.keys():
            place = path.parent.relative_to(out).as_posix()
            page = f"./{quote(place)}/{PAGE}" if (path.parent / PAGE).is_file() else ""
            yield Case(place, record, page)


def _failures(out: Path) -> Iterator[Failure]:
    """What the tables of all runs and shards say, unless there is a newer result."""
    for table_path in sorted(out.glob("failures*.csv")):
        written_ns = table_path.stat().st_mtime_ns
        with table_path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                place = f"{row.get('study')}/{row.get('series')}"
                record = out / place / RECORD
                if not record.is_file() or record.stat().st_mtime_ns <= written_ns:
                    yield Failure(place, *(row.get(name) or "" for name in ("state", "code", "reason")))


def _counts(cases: Sequence[Case], failed: Sequence[Failure], others: Sequence[Failure]) -> list[tuple[str, Content]]:
    outcomes = [item.decision["outcome"] for item in cases if item.decision is not None]
    decided = [(f"Decision: {name}", str(outcomes.count(name))) for name in _ORDER if outcomes]
    return [("Cases", str(len(cases))), *decided, ("Failed", str(len(failed))), ("Left out", str(len(others)))]


def _failed(name: str, title: str, failures: Sequence[Failure]) -> list[Element]:
    if not failures:
        return []
    rows = [
        [node("th", item.place, scope="row"), node("td", item.state), node("td", item.code), node("td", item.reason)]
        for item in failures
    ]
    listed = table(f"{title}: series without new results", ["Series", "State", "Code", "Reason"], rows)
    heading = node("h2", title, id=f"{name}-title")
    return [node("section", heading, listed, class_=name, aria_labelledby=f"{name}-title")]


def _case_section(out: Path, cases: Sequence[Case]) -> Element:
    decided = any(item.decision is not None for item in cases)
    header: list[Content] = ["Picture", "Case", "Mean uncertainty", "Segments", "Notes"]
    if decided:
        header[2:2] = ["Decision", "Score", "Reasons"]
    rows = (_row(item, _preview(out, item) if rank < MOST_PREVIEWS else [], decided) for rank, item in enumerate(cases))
    order = "by decision, then by score; without a decision by mean uncertainty" if decided else "by mean uncertainty"
    said = [node("p", f"Those that need a look come first, {order}.", class_="note")]
    if len(cases) > MOST_PREVIEWS:
        said.append(node("p", f"The first {MOST_PREVIEWS} have a picture.", class_="note"))
    return node(
        "section",
        node("h2", "Cases", id="cases-title"),
        *said,
        table("Every case with results", header, rows),
        class_="cases",
        aria_labelledby="cases-title",
    )


def _preview(out: Path, case: Case) -> list[Element]:
    try:
        png = (out / case.place / THUMBNAIL).read_bytes()
    except FileNotFoundError:
        return []
    shown = picture(png, f"Axial slice of {case.place}, segments outlined")
    # The case's name beside it is a link to the same page: one stop of the keyboard is enough.
    return [node("a", shown, href=case.page, tabindex="-1") if case.page else shown]


def _row(case: Case, preview: Sequence[Element], decided: bool) -> list[Element]:
    name = node("a", case.place, href=case.page) if case.page else node("span", case.place)
    decision = _decision(case.decision) if decided else []
    return [
        node("td", *preview),
        node("th", name, scope="row"),
        *decision,
        node("td", number(case.mean_uncertainty, 3)),
        node("td", node("ul", *(node("li", *_size(item)) for item in case.record["measurements"]))),
        node("td", node("ul", *(node("li", note) for note in case.record["notes"]))),
    ]


def _decision(decision: Mapping[str, Any] | None) -> list[Element]:
    if decision is None:
        return [node("td", "–"), node("td", number(None, 2)), node("td")]
    kind = "" if decision["calibrated"] else " (uncalibrated)"
    reasons = node("ul", *(node("li", item["text"]) for item in decision["reasons"]))
    return [
        node("td", node("strong", decision["outcome"]), kind),
        node("td", number(decision["score"], 2)),
        node("td", reasons),
    ]


def _size(item: Mapping[str, Any]) -> list[Content]:
    if "volume_ml" in item:
        return [f"{item['name']} ", number(item["volume_ml"], 1), " ml"]
    return [f"{item['name']} in ", number(item["frames"], 0), " frames"]
