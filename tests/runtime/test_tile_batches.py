"""Batches through a network: their order, what is done meanwhile, and what comes after a failure."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from tests.fake_backend import FakeBackend
from tests.model_phantom import ModelPhantom
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.tile_batches import Batch, inferred
from ucseg_runtime.tiling import Tile

BATCHES: list[Batch] = [(Tile((number, 0, 0), (16, 16, 16)),) for number in range(5)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return load_model(
        ModelPhantom(tile_shape=(16, 16, 16)).write(tmp_path_factory.mktemp("model") / "phantom")
    ).manifest


class Network(FakeBackend):
    """Every value of a tile is its number; notes what is sent."""

    def __init__(self, spec: ModelSpec, *, elsewhere: bool, fails_at: int = -1) -> None:
        super().__init__(spec, lambda tile: np.repeat(tile, spec.probability_channels, axis=0))
        self.channels = spec.channels
        self.info = replace(self.info, elsewhere=elsewhere)
        self.fails_at = fails_at
        self.sent: list[int] = []
        self.allowed = threading.Semaphore(1000)

    def read(self, batch: Batch) -> np.ndarray:
        return np.full((1, self.channels, 16, 16, 16), batch[0].start[0], dtype=np.float32)

    def infer(self, tiles: np.ndarray, *, with_logits: bool = False) -> TileOutput:
        number = int(tiles.flat[0])
        self.sent.append(number)
        assert self.allowed.acquire(timeout=10.0)
        if number == self.fails_at:
            raise BackendError("the network is gone.")
        return super().infer(tiles, with_logits=with_logits)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_comes_back_with_its_own_output_in_order(spec: ModelSpec, elsewhere: bool, count: int) -> None:
    network = Network(spec, elsewhere=elsewhere)
    found = [
        (batch, float(output.probabilities.flat[0]))
        for batch, output in inferred(BATCHES[:count], network.read, network, with_logits=False)
    ]
    assert found == [(batch, float(number)) for number, batch in enumerate(BATCHES[:count])]


def test_the_next_batch_is_in_the_network_while_the_caller_works_on_one(spec: ModelSpec) -> None:
    network = Network(spec, elsewhere=True)
    network.allowed = threading.Semaphore(1)  # the second batch stays in the network
    answers = inferred(BATCHES, network.read, network, with_logits=False)
    batch, _ = next(answers)
    assert batch == BATCHES[0], "the first came back while the second has no answer"
    network.allowed.release(100)
    assert [item for item, _ in answers] == BATCHES[1:]


def test_an_engine_of_this_process_gets_one_batch_at_a_time(spec: ModelSpec) -> None:
    network = Network(spec, elsewhere=False)
    answers = inferred(BATCHES, network.read, network, with_logits=False)
    for number, _ in enumerate(answers):
        assert network.sent == list(range(number + 1))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nothing_more_is_sent_to_a_network_that_failed(spec: ModelSpec, elsewhere: bool) -> None:
    network = Network(spec, elsewhere=elsewhere, fails_at=2)
    answers = inferred(BATCHES, network.read, network, with_logits=False)
    assert [next(answers)[0], next(answers)[0]] == BATCHES[:2], "what came before it is handed out"
    with pytest.raises(BackendError, match="gone"):
        next(answers)
    assert network.sent == [0, 1, 2]
