"""Started by a test and killed by it: a run of the whole method that writes down every term."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.training.test_trainer import BOTH_STREAMS, PLAN, WHOLE
from tests.training_phantom import block_case
from ucseg_training.data.case_batches import CaseBatches
from ucseg_training.observers import TermsTable
from ucseg_training.trainer import train

STEPS = 26
KILLED_PLAN = replace(PLAN, method=replace(WHOLE, total_steps=STEPS, mixing_start=0.3), steps=STEPS, checkpoint_every=3)


def run(folder: Path) -> None:
    """Run to the end, or until killed; terms go to ``terms.csv`` line by line."""
    torch.set_num_threads(1)
    batches = CaseBatches([block_case("P"), block_case("Q")], BOTH_STREAMS)
    with TermsTable(folder / "terms.csv") as table:
        train(batches, KILLED_PLAN, folder, observers=[table])


if __name__ == "__main__":
    run(Path(sys.argv[1]))
