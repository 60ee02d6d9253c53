"""What is special about OpenVINO: its first use from two threads, its modes, and compiled models that are kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import Model, load_model

FIRST_TILES = """
import builtins, sys, time
from pathlib import Path
import numpy as np
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import load_model

model = load_model(Path(sys.argv[1]))
options = InferenceOptions(engine="openvino", precision="f32", threads=2, gate=False)
with open_backend(model, options) as backend:
    assert backend.info.parallel_tiles == 2
    imported = builtins.__import__
    def slowly(name, *arguments, **named):
        if name.startswith("numpy"):
            time.sleep(0.5)  # the other thread comes to the same place meanwhile
        return imported(name, *arguments, **named)
    builtins.__import__ = slowly
    backend.infer(np.zeros((2, 1, *model.manifest.tiling.tile_shape), np.float32))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(ModelPhantom(tile_shape=(16, 24, 20)).write(tmp_path_factory.mktemp("models") / "phantom"))


def infer(model: Model, tiles: np.ndarray, **options: object) -> TileOutput:
    chosen = InferenceOptions(engine="openvino", precision="f32", gate=False, **options)  # type: ignore[arg-type]
    with open_backend(model, chosen) as backend:
        return backend.infer(tiles)


def random_tiles(model: Model, count: int = 5) -> np.ndarray:
    shape = (count, 1, *model.manifest.tiling.tile_shape)
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_the_first_two_tiles_at_the_same_time_do_not_wait_for_each_other_for_ever(model: Model) -> None:
    child = [sys.executable, "-c", FIRST_TILES, str(model.folder)]
    subprocess.run(child, check=True, timeout=100, cwd=Path(__file__).parents[2])
