"""Doing the runs of a study, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ucseg_training.observers import LogLines, TermsTable
from ucseg_training.settle import settle
from ucseg_training.study.design import Study, StudyRun
from ucseg_training.study.results import RunResult, curves_of, dice_of, load_results, save_results
from ucseg_training.trainer import train

_LOG = logging.getLogger(__name__)

RESULT_NAME = "result.json"
_TERMS_NAME = "terms.csv"


def run_study(study: Study, folder: Path, runs: Sequence[StudyRun]) -> None:
    """Do the runs that are not finished yet, each in its folder; a run that was interrupted is continued.

    Args:
        study: What is trained and how it is scored.
        folder: Receives one folder per run, with its terms and its result.
        runs: Which runs.

    Raises:
        TrainingError: A run cannot go on, see `train`.
        OutputError: Nothing can be written.
    """
    for run in runs:
        here = folder / run.name
        if (here / RESULT_NAME).is_file():
            continue
        _LOG.info("study %s: %s, %d steps", study.name, run.name, run.steps)
        save_results([_done(study, run, here)], here / RESULT_NAME)


def finished(folder: Path, runs: Sequence[StudyRun]) -> list[RunResult]:
    """The results of those runs that are done.

    Raises:
        TrainingError: A result cannot be read.
    """
    return [result for run in runs for result in load_results(folder / run.name / RESULT_NAME)]


def _done(study: Study, run: StudyRun, folder: Path) -> RunResult:
    method = study.method(run)
    plan = study.plan(run, method)
    batches = study.batches(run.seed, method.pseudo_labels != "none", 0)
    with TermsTable(folder / _TERMS_NAME) as table:
        checkpoint = train(batches, plan, folder, observers=[LogLines(every=100), table])
    # Statistics alone: what is compared is the training, so that no variant gets a second one.
    checkpoint = settle(checkpoint, study.batches(run.seed, False, 1), 0, folder, autocast=plan.precision == "bf16")
    return RunResult(run, plan.precision, dice_of(study.score(checkpoint)), curves_of(folder / _TERMS_NAME))
