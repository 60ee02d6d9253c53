"""Agreement of a trio with labels: through the flow that is deployed, on prepared samples, or as the paper scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ucseg_runtime.arrays import BoolArray, Float32Array, UInt8Array
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import ModelError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.postprocess import remove_small_components
from ucseg_runtime.stitching import Stitched, Stitcher, joined
from ucseg_runtime.tiling import plan_tiles
from ucseg_runtime.volume import Volume
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.data.case import Case, bit
from ucseg_training.data.sample import Sample
from ucseg_training.metrics import score_masks
from ucseg_training.nets import DualNet
from ucseg_training.paper_protocol import (
    EmptyPrediction,
    Predict,
    decide,
    resize_nearest,
    score_as_paper,
    segment_acdc,
    segment_planes,
    slide,
)
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.scoring import ScoreRow, score_row
from ucseg_training.torch_backend import DECIDED, Decided, TorchBackend


@dataclass(frozen=True, eq=False)
class Scorable:
    """A checkpoint with the description that scoring needs.

    Attributes:
        net: The trio in eval mode.
        spec: What the model fixes.
    """

    net: DualNet
    spec: ModelSpec

    def backend(self, output: Decided) -> TorchBackend:
        """One output of the trio behind the runtime's contract."""
        autocast = self.spec.default_precision == "bf16" and computes_in_bfloat16()
        return TorchBackend(self.net, self.spec, output, autocast=autocast)

    def predict(self, output: Decided) -> Predict:
        """One output of the trio as a function from tiles to probabilities."""
        backend = self.backend(output)
        return lambda tiles: backend.infer(np.ascontiguousarray(tiles)).probabilities


def load_scorable(checkpoint: Path) -> Scorable:
    """Read a checkpoint that describes its model.

    Raises:
        ModelError: It cannot be read, or does not describe a model.
    """
    loaded = load_checkpoint(checkpoint)
    try:
        return Scorable(loaded.net, ModelSpec.model_validate(loaded.model_spec))
    except ValidationError as error:
        breaches = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise ModelError(f"the checkpoint does not describe a model: {breaches}.") from error


def evaluate(
    checkpoint: Path, cases: Sequence[Case], outputs: Sequence[Decided] = DECIDED, *, surfaces: bool = True
) -> Iterator[ScoreRow]:
    """Scores per case, class and output through the deployed flow, on the grid of the case.

    Args:
        checkpoint: What `ucseg-train` wrote.
        cases: Cases on any grid. A class is scored over the voxels where its presence is known, and left out where it
            does not occur at all.
        outputs: Which outputs of the trio are scored.
        surfaces: Whether surface distances are computed.

    Yields:
        One row per case, output and class; distances in mm.

    Raises:
        ModelError: The checkpoint cannot be used.
    """
    model = load_scorable(checkpoint)
    for case in cases:
        volume = Volume(case.voxels, case.geometry, model.spec.modality)
        for output in outputs:
            found = segment_volume(volume, model.spec, model.backend(output), InferenceOptions())
            for item in model.spec.classes:
                truth: BoolArray = case.label_map == item.label
                if truth.any():
                    decided = ((case.known & bit(item.label)) != 0) | truth
                    predicted = found.label_map == item.label
                    scores = score_masks(predicted, truth, case.geometry.spacing_mm, decided, surfaces=surfaces)
                    yield score_row(case.name, item.name, output, scores)


def evaluate_volume(
    model: Scorable, name: str, volume: Volume, truth: UInt8Array, outputs: Sequence[Decided]
) -> Iterator[ScoreRow]:
    """Scores of every class through the deployed flow, on the grid of the volume; distances in mm.

    Args:
        model: A trio for volumes of one channel.
        name: Of the case.
        volume: Modality units, on any grid.
        truth: uint8, shape of the volume: complete labels.
        outputs: Which outputs of the trio are scored.
    """
    for output in outputs:
        found = segment_volume(volume, model.spec, model.backend(output), InferenceOptions())
        for item in model.spec.classes:
            predicted, reference = found.label_map == item.label, truth == item.label
            yield score_row(name, item.name, output, score_masks(predicted, reference, volume.geometry.spacing_mm))


def evaluate_sample(
    model: Scorable, sample: Sample, spacing_mm: tuple[float, float, float] | None, outputs: Sequence[Decided]
) -> Iterator[ScoreRow]:
    """Scores of a prepared sample with the deployed tiles and clean-up, on the model grid.

    Args:
        model: The trio.
        sample: With complete labels.
        spacing_mm: Of the model grid; None for pictures and planes of unknown size, whose distances are in pixels.
        outputs: Which outputs of the trio are scored.
    """
    truth = _label_map(sample)
    for output in outputs:
        found = _deployed_labels(model, sample, output)
        for item in model.spec.classes:
            predicted, reference = found == item.label, truth == item.label
            if spacing_mm is not None:
                yield score_row(sample.name, item.name, output, score_masks(predicted, reference, spacing_mm))
            else:
                yield score_row(sample.name, item.name, output, score_as_paper(predicted, reference, "undefined"))


def evaluate_as_paper(
    model: Scorable,
    sample: Sample,
    outputs: Sequence[Decided] = ("fused",),
    *,
    largest_component: bool | None = None,
) -> Iterator[ScoreRow]:
    """Scores of a prepared volume by the paper's windows, rules and metrics, in voxels.

    Args:
        model: A trio for volumes.
        sample: With complete labels.
        outputs: Which outputs of the trio are scored; the paper scores the fused one.
        largest_component: Whether only the largest component of every class counts; None: if there is one class, as
            the paper does.
    """
    truth = _label_map(sample)
    if largest_component is None:
        largest_component = len(model.spec.classes) == 1
    for output in outputs:
        mean = slide(sample.image, model.predict(output), model.spec.tiling.tile_shape)
        found = decide(mean, largest_component=largest_component)
        yield from _rows_as_paper(model, sample.name, output, found, truth, "worst")


def evaluate_planes_as_paper(
    model: Scorable, name: str, image: Float32Array, truth: UInt8Array, *, largest_component: bool = False
) -> Iterator[ScoreRow]:
    """Scores of a picture at the side of the networks' tile by the paper's rules, in pixels of that grid.

    Args:
        model: A trio for planes.
        name: Of the case.
        image: float32, shape (channels, z, y, x), network input units, on its own grid.
        truth: uint8, shape (z, y, x) of the image.
        largest_component: Whether only the largest component of every class counts.
    """
    side = model.spec.tiling.tile_shape[2]
    found = segment_planes(image, model.predict("fused"), side, largest_component=largest_component)
    yield from _rows_as_paper(model, name, "fused", found, resize_nearest(truth, side), "undefined")


def evaluate_acdc_as_paper(model: Scorable, name: str, voxels: Float32Array, truth: UInt8Array) -> Iterator[ScoreRow]:
    """Scores of a cardiac volume on its own grid by the paper's rules, in voxels.

    Args:
        model: A softmax trio for planes.
        name: Of the case.
        voxels: float32, shape (z, y, x), in [0, 1].
        truth: uint8, same shape.
    """
    yield from _rows_as_paper(model, name, "fused", segment_acdc(voxels, model.predict("fused")), truth, "zero")


def _rows_as_paper(
    model: Scorable, name: str, output: Decided, found: UInt8Array, truth: UInt8Array, on_empty: EmptyPrediction
) -> Iterator[ScoreRow]:
    for item in model.spec.classes:
        scores = score_as_paper(found == item.label, truth == item.label, on_empty)
        yield score_row(name, item.name, output, scores)


def _deployed_labels(model: Scorable, sample: Sample, output: Decided) -> UInt8Array:
    image, spec = _planes(sample.image), model.spec
    backend = model.backend(output)
    plan = plan_tiles((image.shape[1], image.shape[2], image.shape[3]), spec.tiling)
    canvas = Stitcher(plan, spec.probability_channels)
    stitched: list[Stitched] = []
    for tile in plan.tiles:
        cut = np.broadcast_to(sample.padding[:, None, None, None], (len(image), *tile.shape)).copy()
        inside, within = tile.overlap_with(plan.spatial_shape)
        cut[(slice(None), *within)] = image[(slice(None), *inside)]
        stitched += canvas.add((tile,), backend.infer(cut[None]))
    whole = joined(stitched, slice(0, image.shape[1]))
    label_map = decide(whole.probabilities, largest_component=False)
    voxel_ml = float(np.prod(spec.preprocessing.spacing_mm or (1.0, 1.0, 1.0))) / 1000.0
    remove_small_components(label_map, spec.postprocessing, voxel_ml)
    return label_map


def _planes(image: Float32Array) -> Float32Array:
    """(channels, z, y, x), also of a picture."""
    return image if image.ndim == 4 else image[:, None]


def _label_map(sample: Sample) -> UInt8Array:
    if sample.label_map is None or sample.known is not None:
        raise ModelError("a sample without complete labels cannot be scored.")
    return sample.label_map if sample.label_map.ndim == 3 else sample.label_map[None]
