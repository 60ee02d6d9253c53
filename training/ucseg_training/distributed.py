"""Data-parallel training with the processes that ``torchrun`` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Workers:
    """The processes of one run.

    Attributes:
        rank: Which of them this is, 0 … count − 1; 0 writes and reports.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


@contextmanager
def workers_of_torchrun(device: torch.device) -> Iterator[Workers]:
    """The processes that ``torchrun`` started, connected; a single one where the program was started alone.

    Args:
        device: NCCL connects GPUs, gloo everything else.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def local_device(device: str) -> torch.device:
    """``auto`` is the GPU of this process where there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
