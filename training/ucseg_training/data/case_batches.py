"""Batches of varied tiles from a few patients in memory, whose labels may be partial."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ucseg_runtime.intensity import intensity_map
from ucseg_runtime.manifest import Preprocessing
from ucseg_training.batches import Batch
from ucseg_training.data.augment import AugmentSpec, TrainingTile, draw_tile
from ucseg_training.data.case import Case
from ucseg_training.errors import TrainingError
from ucseg_training.method.targets import partial_target

# Apart from the numbers of other streams that are seeded with the same seed.
_STREAM = 0


@dataclass(frozen=True)
class CaseSampling:
    """How tiles are drawn.

    Attributes:
        tile_shape: Voxels along (z, y, x).
        num_classes: K, background included.
        preprocessing: Intensity rule and padding, as deployed.
        augment: Ranges of variation.
        labelled_weights: How often each labelled case is drawn, by name, relative to the others.
        unlabelled_weights: The same of the cases whose labels are not looked at; empty for labels alone.
        labelled_tiles: Labelled tiles per batch. Of two, each takes half the time of a single one on a CPU: torch runs
            the deeper 3D convolutions of a single tile by a slow path.
        unlabelled_tiles: Unlabelled tiles per batch.
        seed: Of the tiles.
        stream: Batches of another stream are other ones.
    """

    tile_shape: tuple[int, int, int]
    num_classes: int
    preprocessing: Preprocessing
    augment: AugmentSpec
    labelled_weights: Mapping[str, float]
    unlabelled_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    labelled_tiles: int = 2
    unlabelled_tiles: int = 2
    seed: int = 42
    stream: int = _STREAM


class CaseBatches:
    """Keeps the `BatchSource` contract.

    Args:
        cases: Patients on the model grid; those without a weight are not used.
        sampling: How tiles are drawn.

    Raises:
        TrainingError: A case with a weight is not there, or no case has one.
    """

    def __init__(self, cases: Sequence[Case], sampling: CaseSampling) -> None:
        self._labelled = _chosen(cases, sampling.labelled_weights, "labelled")
        self._unlabelled = (
            _chosen(cases, sampling.unlabelled_weights, "unlabelled") if sampling.unlabelled_weights else []
        )
        self._sampling = sampling
        # A rule may look at the whole volume, of which a tile is a part.
        self._to_input = {
            case.name: intensity_map(case.voxels, sampling.preprocessing.intensity)
            for case in (*self._labelled, *self._unlabelled)
        }

    def describe(self) -> dict[str, object]:
        """Names and digests of the cases, and how tiles are drawn."""
        used = {case.name: case for case in (*self._labelled, *self._unlabelled)}
        fields = {field.name: getattr(self._sampling, field.name) for field in dataclasses.fields(self._sampling)}
        return {
            **fields,
            "preprocessing": self._sampling.preprocessing.model_dump(mode="json"),
            "augment": dataclasses.asdict(self._sampling.augment),
            "labelled_weights": dict(self._sampling.labelled_weights),
            "unlabelled_weights": dict(self._sampling.unlabelled_weights),
            "cases": {name: _digest(case) for name, case in used.items()},
        }

    def draw(self, number: int) -> Batch:
        """The batch with this number."""
        sampling = self._sampling
        rng = np.random.default_rng((sampling.seed, sampling.stream, number))
        labelled = [self._tile(self._labelled, sampling.labelled_weights, rng) for _ in range(sampling.labelled_tiles)]
        label_map = torch.cat([tile.label_map for tile in labelled])
        known = torch.cat([tile.known for tile in labelled])
        unlabelled = None
        if self._unlabelled:
            weights = sampling.unlabelled_weights
            tiles = [self._tile(self._unlabelled, weights, rng) for _ in range(sampling.unlabelled_tiles)]
            unlabelled = torch.cat([tile.voxels for tile in tiles])
        target = partial_target(label_map, known, sampling.num_classes)
        return Batch(torch.cat([tile.voxels for tile in labelled]), target, unlabelled)

    def _tile(self, cases: Sequence[Case], weights: Mapping[str, float], rng: np.random.Generator) -> TrainingTile:
        """A varied tile of a case, its voxels in network input units."""
        shares = np.array([weights[case.name] for case in cases])
        case = cases[int(rng.choice(len(cases), p=shares / shares.sum()))]
        sampling = self._sampling
        tile = draw_tile(case, sampling.tile_shape, sampling.augment, sampling.preprocessing.padding_value, rng)
        return replace(tile, voxels=torch.from_numpy(self._to_input[case.name](tile.voxels.numpy())))


def _chosen(cases: Sequence[Case], weights: Mapping[str, float], stream: str) -> list[Case]:
    wanted = {name for name, weight in weights.items() if weight > 0.0}
    chosen = [case for case in cases if case.name in wanted]
    missing = wanted - {case.name for case in chosen}
    if missing or not wanted:
        raise TrainingError(
            f"{len(wanted)} {stream} cases are to be trained on; {len(missing)} of them are not there: "
            f"{', '.join(sorted(missing)) or 'none'}."
        )
    return chosen


def _digest(case: Case) -> str:
    sha256 = hashlib.sha256()
    for array in (case.voxels, case.label_map, case.known):
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()
