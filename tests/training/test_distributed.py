"""Two processes train one trio together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ucseg_training.batches import ShareOfWorker
from ucseg_training.checkpoint import load_training_state
from ucseg_training.distributed import Workers, local_device, workers_of_torchrun
from ucseg_training.trainer import STATE_NAME

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run by two workers."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--standalone", "-m", "tests.training.distributed_run", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_workers_learn_from_other_tiles_and_hold_the_same_weights(together: Path) -> None:
    first, second = (torch.load(together / f"batch{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first, second)
    weights = [load_file(together / f"rank{rank}.safetensors") for rank in (0, 1)]
    learnt = [name for name in weights[0] if "running_" not in name and "num_batches" not in name]
    assert len(learnt) > 100
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in learnt)


def test_first_worker_alone_writes_what_they_learnt(together: Path) -> None:
    state = load_training_state(together / "run" / STATE_NAME)
    weights = load_file(together / "rank0.safetensors")
    assert state.step == 3
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in weights.items())


def test_a_program_of_its_own_is_the_only_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with workers_of_torchrun(torch.device("cpu")) as workers:
        assert workers == Workers(0, 1)
        assert workers.is_first


def test_workers_share_all_batches_without_overlap() -> None:
    class Numbers:
        def describe(self) -> dict[str, object]:
            return {"what": "numbers"}

        def draw(self, number: int) -> int:
            return number

    shares = [ShareOfWorker(Numbers(), Workers(rank, 3)) for rank in range(3)]
    assert sorted(share.draw(number) for share in shares for number in range(4)) == list(range(12))
    assert shares[0].describe() == {"what": "numbers", "workers": 3}


def test_device_is_the_cpu_unless_there_is_another_or_it_is_asked_for() -> None:
    assert local_device("cpu") == torch.device("cpu")
    assert local_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
