"""Agreement of a trio with labels that may be partial, through the flow that is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from ucseg_runtime.arrays import BoolArray
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import ModelError
from ucseg_runtime.manifest import ModelSpec, Quality
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.data.case import Case, bit
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.torch_backend import DECIDED, Decided, TorchBackend


def dice(predicted: BoolArray, truth: BoolArray) -> float:
    """2 |P ∩ T| / (|P| + |T|), in [0, 1]; NaN where both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2.0 * float((predicted & truth).sum()) / total if total else float("nan")


def evaluate(checkpoint: Path, cases: Sequence[Case], outputs: Sequence[Decided] = DECIDED) -> Iterator[Quality]:
    """Dice per case, class and output.

    Args:
        checkpoint: What `ucseg-train` wrote.
        cases: Cases on any grid. A class is scored over the voxels where its presence is known, and left out where it
            does not occur at all.
        outputs: Which outputs of the trio are scored.

    Yields:
        One row per case, output and class.

    Raises:
        ModelError: The checkpoint cannot be used.
    """
    loaded = load_checkpoint(checkpoint)
    spec = _spec_of(loaded.model_spec)
    autocast = spec.default_precision == "bf16" and computes_in_bfloat16()
    for case in cases:
        volume = Volume(case.voxels, case.geometry, spec.modality)
        for output in outputs:
            backend = TorchBackend(loaded.net, spec, output, autocast=autocast)
            segmentation = segment_volume(volume, spec, backend, InferenceOptions())
            yield from _score(case, segmentation, output)


def _spec_of(description: dict[str, object]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(description)
    except ValidationError as error:
        breaches = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise ModelError(f"the checkpoint does not describe a model: {breaches}.") from error


def _score(case: Case, segmentation: Segmentation, output: Decided) -> Iterator[Quality]:
    for item in segmentation.classes:
        truth: BoolArray = case.label_map == item.label
        if not truth.any():
            continue
        decided = ((case.known & bit(item.label)) != 0) | truth
        agreement = dice((segmentation.label_map == item.label) & decided, truth)
        yield Quality(data_set=case.name, segment=item.name, output=output, dice=round(agreement, 4))
