"""Started by torchrun: a few data-parallel steps; every worker writes down its weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.training.test_trainer import ADAMW, BOTH_STREAMS, PLAN, WHOLE
from tests.training_phantom import block_case
from ucseg_training.batches import ShareOfWorker
from ucseg_training.data.case_batches import CaseBatches
from ucseg_training.distributed import workers_of_torchrun
from ucseg_training.trainer import Run, train


def main() -> None:
    """Three steps of the whole method, mixing in the last; then the same through `train`."""
    folder, device = Path(sys.argv[1]), torch.device("cpu")
    torch.set_num_threads(1)
    plan = replace(PLAN, method=WHOLE, steps=4, stop_after=3, optimisation=replace(ADAMW, accumulate=2))
    with workers_of_torchrun(device) as workers:
        batches = ShareOfWorker(CaseBatches([block_case("P"), block_case("Q")], BOTH_STREAMS), workers)
        run = Run(plan, batches, device, workers)
        for _ in range(3):
            run.advance()
        save_file(
            {k: v.contiguous() for k, v in run.net.state_dict().items()}, folder / f"rank{workers.rank}.safetensors"
        )
        torch.save(batches.draw(0).labelled, folder / f"batch{workers.rank}.pt")
        train(batches, plan, folder / "run", workers=workers)


main()
