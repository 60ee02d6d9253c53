"""Does the case score tell corrupted images from clean ones?

Of each patient there are clean copies (mild noise, other tiling) and corrupted ones (`corruptions`), all of which go
through the deployed flow. For patients whom the weights know, the ranges are those of the other training cases: their
own would make them look surer. Patient A is in neither.

AUROC: how often a corrupted copy has a higher score than a clean one. Sensitivity: share of the corrupted copies above
the score that at most 5 % of the clean ones exceed.

    python benchmarks/decision.py [--patients A B C D lung1] [--engine auto] [--write docs/decision.md]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corruptions import CLEAN_COPIES, CORRUPTIONS, copies
from benchmarks.measuring import processor
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import Backend
from ucseg_runtime.case_figures import case_figures
from ucseg_runtime.case_score import score_case
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.decision import BUILT_IN_LIMITS, outcome_of
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.model_folder import Model, default_model_folder, load_model
from ucseg_runtime.packaged_data import write_demo_study
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import measure, ready_to_write
from ucseg_runtime.training_ranges import ranges_over
from ucseg_runtime.volume import Volume
from ucseg_training.data.demo_cases import demo_volumes

TRAINED_ON = ("B", "C", "D", "lung1", "lung2")
LABELLED = ("B", "C", "D")
HELD_OUT = "A"
AS_IT_IS = "as it is"
FALSE_ALARMS = 0.05
MARKS = "<!-- figures of benchmarks/decision.py -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Copy:
    """One copy of a patient.

    Attributes:
        patient: Who.
        change: What was done to it.
        amount: How much of it.
        corrupted: Whether something is wrong with it.
        figures: Measured of it.
    """

    patient: str
    change: str
    amount: float
    corrupted: bool
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """A copy and its case score."""

    copy: Copy
    score: float

    @property
    def corrupted(self) -> bool:
        """Whether something is wrong with the copy."""
        return self.copy.corrupted


def auroc(copies_scored: Sequence[Scored]) -> float:
    """Probability that a corrupted copy has a higher score than a clean one; ties count half."""
    clean, corrupted = _scores(copies_scored)
    return float(mannwhitneyu(corrupted, clean).statistic / (len(clean) * len(corrupted)))


def threshold(copies_scored: Sequence[Scored]) -> float:
    """The least score that at most `FALSE_ALARMS` of the clean copies exceed."""
    clean, _ = _scores(copies_scored)
    return sorted(clean)[len(clean) - 1 - int(FALSE_ALARMS * len(clean))]


def sensitivity(copies_scored: Sequence[Scored], limit: float) -> float:
    """Share of the corrupted copies above a score."""
    _, corrupted = _scores(copies_scored)
    return float(np.mean([score > limit for score in corrupted]))


def _scores(copies_scored: Sequence[Scored]) -> tuple[list[float], list[float]]:
    clean = [item.score for item in copies_scored if not item.corrupted]
    return clean, [item.score for item in copies_scored if item.corrupted]


def patients(wanted: Sequence[str]) -> Iterator[tuple[str, Volume]]:
    """Name and volume of the patients that are wanted."""
    if HELD_OUT in wanted:
        with tempfile.TemporaryDirectory() as folder:
            write_demo_study(Path(folder))
            yield HELD_OUT, read_volume(select_series(scan(Path(folder)), "CT").chosen)
    if set(wanted) - {HELD_OUT}:
        named = zip(TRAINED_ON, demo_volumes(), strict=True)
        yield from ((name, volume) for name, (volume, _) in named if name in wanted)


def figures_of(volume: Volume, model: Model, backend: Backend) -> dict[str, float]:
    """Segment and measure."""
    segmentation = segment_volume(volume, model.manifest, backend, InferenceOptions())
    return case_figures(volume, ready_to_write(segmentation), measure(segmentation))


def measured_copies(wanted: Sequence[str], model: Model, backend: Backend) -> Iterator[Copy]:
    """Every copy of every patient; of training patients that are not wanted the image as it is, for the ranges."""
    everybody = dict.fromkeys([*wanted, *TRAINED_ON])
    for patient, volume in patients(tuple(everybody)):
        for changes in (CLEAN_COPIES, CORRUPTIONS) if patient in wanted else ():
            for change, amount, copy in copies(volume, changes):
                yield Copy(patient, change, amount, changes is CORRUPTIONS, figures_of(copy, model, backend))
        yield Copy(patient, AS_IT_IS, 0.0, False, figures_of(volume, model, backend))


def scored(found: Sequence[Copy], classes: Sequence[SegmentClass]) -> list[Scored]:
    """Every copy, by the ranges of the other training cases."""
    known = {
        copy.patient: copy.figures if copy.patient in LABELLED else of_the_image(copy.figures)
        for copy in found
        if copy.change == AS_IT_IS and copy.patient in TRAINED_ON
    }
    scores = []
    for copy in found:
        ranges = ranges_over([figures for name, figures in known.items() if name != copy.patient])
        scores.append(Scored(copy, score_case(copy.figures, ranges, classes).score))
    return scores


def of_the_image(figures: Mapping[str, float]) -> dict[str, float]:
    """Without those of the result, which of unlabelled training cases may be anything."""
    return {key: value for key, value in figures.items() if "/" not in key and key != "found"}


def tables(found: Sequence[Scored], engine: str) -> str:
    """Markdown of all figures."""
    limit = threshold(found)
    groups: dict[str, list[Scored]] = {"all": list(found)}
    if any(item.copy.patient == HELD_OUT for item in found):
        groups["A alone, held out"] = [item for item in found if item.copy.patient == HELD_OUT]
    if any(item.copy.patient != HELD_OUT for item in found):
        groups["training patients"] = [item for item in found if item.copy.patient != HELD_OUT]
    lines = [
        f"Patients {', '.join(dict.fromkeys(item.copy.patient for item in found))}; {engine}. "
        f"The score that at most 5 % of all clean copies exceed was {limit:.3f}.",
        "",
        "| patients | clean copies | corrupted copies | AUROC | sensitivity at ≤ 5 % false alarms |",
        "|---|---|---|---|---|",
    ]
    for name, copies_of in groups.items():
        clean, corrupted = _scores(copies_of)
        figures = f"{auroc(copies_of):.3f} | {sensitivity(copies_of, limit):.2f}"
        lines.append(f"| {name} | {len(clean)} | {len(corrupted)} | {figures} |")
    lines += [
        "",
        "| copies | n | score: least, median, greatest | accept / review / reject by the built-in limits |",
        "|---|---|---|---|",
    ]
    kinds = dict.fromkeys((item.copy.change, item.copy.amount) for item in found)
    for change, amount in kinds:
        scores = sorted(item.score for item in found if (item.copy.change, item.copy.amount) == (change, amount))
        outcomes = [outcome_of(score, BUILT_IN_LIMITS) for score in scores]
        counts = " / ".join(str(outcomes.count(outcome)) for outcome in ("accept", "review", "reject"))
        spread = f"{scores[0]:.2f}, {float(np.median(scores)):.2f}, {scores[-1]:.2f}"
        lines.append(f"| {change} {amount:g} | {len(scores)} | {spread} | {counts} |")
    return "\n".join(lines)


def write_into(page: Path, text: str) -> None:
    """Put the figures between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _measured(chosen: argparse.Namespace, model: Model) -> tuple[list[Copy], str]:
    with open_backend(model, InferenceOptions(engine=chosen.engine)) as backend:
        engine = backend.info.engine
        found = []
        for copy in measured_copies(chosen.patients, model, backend):
            found.append(copy)
            print(copy.patient, copy.change, copy.amount, flush=True)
    return found, f"{engine.name} {engine.version} {engine.precision} on {processor()}"


def _read(path: Path) -> tuple[list[Copy], str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Copy(**fields) for fields in content["copies"]], content["engine"]


def main() -> None:
    """Measure and print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", nargs="+", default=["A", "B", "C", "D", "lung1"], choices=[HELD_OUT, *TRAINED_ON])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--write", type=Path, help="page that gets the figures")
    parser.add_argument("--json", type=Path, help="every copy with what was measured of it: written, or read if there")
    chosen = parser.parse_args()
    began = time.perf_counter()
    model = load_model(default_model_folder())
    found, engine = _read(chosen.json) if chosen.json and chosen.json.is_file() else _measured(chosen, model)
    if chosen.json:
        content = {"engine": engine, "copies": [asdict(copy) for copy in found]}
        chosen.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    text = tables(scored(found, model.manifest.classes), engine)
    print(text)
    print(f"{time.perf_counter() - began:.0f} s")
    if chosen.write is not None:
        write_into(chosen.write, text)


if __name__ == "__main__":
    main()
