"""What is special about OpenVINO: its first use from two threads, its modes, and compiled models that are kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model_phantom import ModelPhantom
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import TileOutput
from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.compiled_cache import CompiledKey, kept
from ucseg_runtime.backends.load import parallel_tiles
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


CORES_IN_USE = """
import contextlib, os, sys, threading, time
from pathlib import Path
import numpy as np
from ucseg_runtime.backends import open_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.model_folder import load_model

model = load_model(Path(sys.argv[1]))
options = InferenceOptions(engine="openvino", precision="f32", threads=int(sys.argv[2]), gate=False)
seen, ended = set(), threading.Event()

def watch():
    while not ended.is_set():
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                seen.add(len(os.sched_getaffinity(int(task))))

with open_backend(model, options) as backend:
    tiles = np.zeros((1, 1, *model.manifest.tiling.tile_shape), np.float32)
    watcher = threading.Thread(target=watch)
    watcher.start()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        backend.infer(tiles)
    ended.set()
    watcher.join()
print(min(seen))
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


@pytest.mark.parametrize("options", [{"mode": "latency"}, {"mode": "throughput"}, {"most_parallel_tiles": 1}], ids=str)
def test_modes_and_limits_do_not_change_a_bit_in_f32(model: Model, options: dict[str, object]) -> None:
    tiles = random_tiles(model)
    expected, found = infer(model, tiles, threads=2), infer(model, tiles, threads=2, **options)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)


@pytest.mark.parametrize(
    ("threads", "options", "tiles"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (4, {}, 2),
        (16, {}, 4),
        (64, {}, 8),
        (16, {"mode": "latency"}, 1),
        (16, {"mode": "throughput"}, 16),
        (16, {"mode": "throughput", "most_parallel_tiles": 3}, 3),
        (2, {"most_parallel_tiles": 3}, 2),
    ],
)
def test_tiles_at_the_same_time_follow_cores_mode_and_limit(
    model: Model, threads: int, options: dict[str, Any], tiles: int
) -> None:
    chosen = InferenceOptions(engine="openvino", precision="f32", gate=False, threads=threads, **options)
    assert parallel_tiles(choose(model, chosen), chosen, threads) == tiles


def test_engines_of_one_tile_at_a_time_have_one_in_every_mode(model: Model) -> None:
    chosen = InferenceOptions(engine="onnxruntime", precision="f32", gate=False, mode="throughput")
    assert parallel_tiles(choose(model, chosen), chosen, 16) == 1


def test_kept_models_are_used_and_do_not_change_a_bit(model: Model, tmp_path: Path) -> None:
    tiles, folder = random_tiles(model), tmp_path / "cache" / "compiled"
    expected = infer(model, tiles)
    first = infer(model, tiles, cache_folder=folder)
    (kept_file,) = folder.iterdir()
    written = kept_file.stat()
    second = infer(model, tiles, cache_folder=folder)
    assert kept_file.stat().st_mtime_ns == written.st_mtime_ns, "it was compiled again"
    for found in (first, second):
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert written.st_mode & 0o777 == 0o600


def test_other_models_threads_and_precisions_have_files_of_their_own(model: Model, tmp_path: Path) -> None:
    other = load_model(ModelPhantom(tile_shape=(16, 24, 20), sharpness=30.0).write(tmp_path / "other"))
    for number, (opened, options) in enumerate(
        [(model, {"threads": 1}), (model, {"threads": 2}), (model, {"threads": 2, "mode": "latency"}), (other, {})], 1
    ):
        infer(opened, random_tiles(model), cache_folder=tmp_path / "kept", **options)
        assert len(list((tmp_path / "kept").iterdir())) == number


def cut_short(content: bytes) -> bytes:
    return content[:100]


def with_other_weights(content: bytes) -> bytes:
    changed = bytearray(content)
    for place in range(len(changed) // 2, len(changed) // 2 + 100):
        changed[place] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize("damage", [cut_short, with_other_weights, lambda content: b""])
def test_damaged_files_are_compiled_again(model: Model, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tiles, folder = random_tiles(model), tmp_path / "kept"
    expected = infer(model, tiles, cache_folder=folder)
    (kept_file,) = folder.iterdir()
    damaged = damage(kept_file.read_bytes())
    kept_file.write_bytes(damaged)
    found = infer(model, tiles, cache_folder=folder)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    content = kept_file.read_bytes()
    assert content != damaged, "it was not kept again"
    assert hashlib.sha256(content[32:]).digest() == content[:32]


def test_files_that_openvino_does_not_take_are_compiled_again(model: Model, tmp_path: Path) -> None:
    tiles, folder = random_tiles(model), tmp_path / "kept"
    expected = infer(model, tiles, cache_folder=folder)
    (kept_file,) = folder.iterdir()
    nonsense = b"not a compiled model"
    kept_file.write_bytes(hashlib.sha256(nonsense).digest() + nonsense)
    np.testing.assert_array_equal(infer(model, tiles, cache_folder=folder).probabilities, expected.probabilities)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_folders_that_others_can_use_are_neither_trusted_nor_written(model: Model, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "kept"
    infer(model, random_tiles(model), cache_folder=folder)
    (kept_file,) = folder.iterdir()
    kept_file.rename(tmp_path / "aside")
    folder.chmod(mode)
    infer(model, random_tiles(model), cache_folder=folder)
    assert not list(folder.iterdir())
    key = CompiledKey("graph", "model", "engine", "device", "settings")
    (folder / key.file_name).write_bytes((tmp_path / "aside").read_bytes())
    assert kept(folder, key) is None
    folder.chmod(0o700)
    assert kept(folder, key) is not None


def test_a_link_and_a_place_that_cannot_be_written_are_not_used(model: Model, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "link", tmp_path / "file", tmp_path / "file" / "below"):
        infer(model, random_tiles(model), cache_folder=folder)
    assert not list((tmp_path / "real").iterdir())


def test_engine_on_a_share_of_the_cores_binds_no_thread_to_one_of_them(tmp_path: Path) -> None:
    """Several processes with a share each, as Triton has them, would all be bound to the same first cores."""
    folder = ModelPhantom(tile_shape=(32, 64, 64)).write(tmp_path / "phantom")

    found = subprocess.run(
        [sys.executable, "-c", CORES_IN_USE, folder, "1"], capture_output=True, text=True, check=True
    )

    assert int(found.stdout) == len(os.sched_getaffinity(0))
