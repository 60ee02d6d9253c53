"""Tiles on which graphs and networks are compared: random ones, made-up bodies, tiles of training cases, a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.graphs import engine_tile_shape
from ucseg_runtime.errors import InputError, TileShapeError
from ucseg_runtime.intensity import apply_intensity, intensity_map
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.tiling import Tile, plan_tiles
from ucseg_training.data.case import Case, load_case

_TISSUES_HU = (-850.0, -100.0, 40.0, 60.0, 120.0, 180.0, 400.0)
_ELLIPSOIDS = 12
_NOISE_HU = 15.0


@dataclass(frozen=True, eq=False)
class TileSet:
    """A named batch of tiles.

    Attributes:
        name: What they are, for the reports.
        tiles: float32, C-contiguous, shape (tiles, channels, *sides in the order of the network), network input units.
    """

    name: str
    tiles: Float32Array


def random_tiles(spec: ModelSpec, count: int, seed: int = 0) -> TileSet:
    """Tiles of independent normal noise: every activation is reached, none by habit."""
    rng = np.random.default_rng(seed)
    shape = (count, spec.channels, *engine_tile_shape(spec.tiling))
    return TileSet(f"random ({count})", rng.standard_normal(shape, dtype=np.float32))


def phantom_tiles(spec: ModelSpec, count: int, seed: int = 0) -> TileSet:
    """Tiles with ellipsoids of tissue in air, with noise, through the model's intensity rule.

    They have what noise lacks: large even regions and sharp borders. Values are CT numbers; for other modalities they
    are as good as any.
    """
    rng = np.random.default_rng(seed)
    bodies = [_body(spec.tiling.tile_shape, spec.preprocessing.padding_value, rng) for _ in range(count)]
    tiles = [apply_intensity(body, spec.preprocessing.intensity) for body in bodies]
    return TileSet(f"phantom ({count})", _as_batch(tiles, spec))


def case_tiles(spec: ModelSpec, folder: Path, per_case: int) -> TileSet:
    """Tiles of prepared training cases, spread evenly over each volume.

    Args:
        spec: Tile shape and intensity rule; one channel.
        folder: Holds cases as NPZ files.
        per_case: Most tiles of one case.

    Raises:
        InputError: The folder holds no case, or one that cannot be read.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise InputError("the folder of --cases holds no NPZ file.", hint="Make cases with ucseg-train evaluate.")
    tiles = []
    for ordinal, path in enumerate(paths, start=1):
        case = _load(path, f"case {ordinal} of {len(paths)}")
        # A rule may look at the whole volume, of which a tile is a part.
        to_input = intensity_map(case.voxels, spec.preprocessing.intensity)
        plan = plan_tiles(case.geometry.shape, spec.tiling).tiles
        chosen = np.linspace(0, len(plan) - 1, min(per_case, len(plan))).round().astype(int)
        tiles += [to_input(_cut(case.voxels, plan[index], spec.preprocessing.padding_value)) for index in chosen]
    return TileSet(f"real ({len(tiles)} of {len(paths)} cases)", _as_batch(tiles, spec))


def tiles_from_file(spec: ModelSpec, path: Path) -> TileSet:
    """Tiles as the graphs take them, from an NPY file or from the only array of an NPZ file.

    Raises:
        InputError: The file cannot be read as one array.
        TileShapeError: The array is not a batch of the model's tiles.
    """
    tiles = _only_array(path)
    expected = (spec.channels, *engine_tile_shape(spec.tiling))
    if tiles.ndim != len(expected) + 1 or tiles.shape[1:] != expected or not len(tiles):
        raise TileShapeError(f"the tiles of --tiles have shape {tiles.shape}; expected (tiles, {_sides(expected)}).")
    return TileSet(f"given ({len(tiles)})", np.ascontiguousarray(tiles, dtype=np.float32))


def _load(path: Path, name: str) -> Case:
    try:
        return load_case(path)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{name} cannot be read ({type(error).__name__}).") from error


def _only_array(path: Path) -> npt.NDArray[np.generic]:
    try:
        with path.open("rb") as file:  # numpy leaves a file that it opened itself open when it is damaged
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                return stored
            (name,) = stored.files
            array: npt.NDArray[np.generic] = stored[name]
            return array
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"the file of --tiles is not one NumPy array ({type(error).__name__}).", hint="Save it with numpy.save."
        ) from error


def _cut(voxels: Float32Array, tile: Tile, padding: float) -> Float32Array:
    result = np.full(tile.shape, padding, dtype=np.float32)
    inside, within = tile.overlap_with((voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    result[within] = voxels[inside]
    return result


def _body(shape: tuple[int, int, int], air: float, rng: np.random.Generator) -> Float32Array:
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij"), axis=-1)
    body = np.full(shape, air, dtype=np.float32)
    for _ in range(_ELLIPSOIDS):
        centre, radii = rng.uniform(-0.8, 0.8, size=3), rng.uniform(0.1, 0.6, size=3)
        body[(((place - centre) / radii) ** 2).sum(axis=-1) < 1.0] = rng.choice(_TISSUES_HU)
    return body + rng.normal(0.0, _NOISE_HU, size=shape).astype(np.float32)


def _as_batch(tiles: list[Float32Array], spec: ModelSpec) -> Float32Array:
    """Tiles (z, y, x) in network input units as a batch for the network; every channel gets the same image."""
    batch = np.stack(tiles)[:, None]
    turned = batch if spec.tiling.axis_order == "zyx" else batch.transpose(0, 1, 4, 3, 2)
    return np.ascontiguousarray(np.repeat(turned, spec.channels, axis=1))


def _sides(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
