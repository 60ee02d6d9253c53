"""The learned UPG against every weight-free fusion rule and each subnet alone, on one model, as Markdown.

    python benchmarks/fusion_rules.py [--cases runs/cases] [--n 15] [--write docs/fusion.md]

Every output goes through the deployed flow (OpenVINO f32, all of the volume looked at) and is scored against labels of
the TotalSegmentator network: patient A, who is in no weight, on the source grid; patient B, who is in the weights, on
the model grid. Dice is that of the labels after the model's clean-up. The other figures are over the voxels of the box
around the patient: ECE over 15 bins of the largest probability; AUROC of the uncertainty for voxels whose most probable
class is wrong; area under the risk-coverage curve (AURC), with the share of wrong voxels, which it would be for an
uncertainty that says nothing. "Cost" is the time of a tile through the merged graph relative to `mean`, median of
rounds in which all rules take turns. With --write the tables replace what stands between the marks of that file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ucseg_export.fusion import FusionRequest, export_fusion
from ucseg_export.parity_tiles import phantom_tiles
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import Backend, BackendInfo, TileOutput
from ucseg_runtime.body import body_box
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.manifest import ModelSpec, WeightFreeRule
from ucseg_runtime.model_folder import Model, default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.data.case import Case
from ucseg_training.data.patient_a import patient_a
from ucseg_training.demo_training import prepared_cases
from ucseg_training.error_detection import error_detection
from ucseg_training.metrics import score_masks

RULES: tuple[WeightFreeRule, ...] = get_args(WeightFreeRule)
OPTIONS = InferenceOptions(engine="openvino", precision="f32", gate=False, skip_air=False, keep_probabilities=True)
BEGIN, END = "<!-- fusion_rules.py: begin -->", "<!-- fusion_rules.py: end -->"

_IN_SAMPLE = "B"


class OneSubnet:
    """One subnet alone behind the backend contract, with its own evidential uncertainty.

    Args:
        backend: The model, staged.
        spec: What the model fixes.
        subnet: Which one.
    """

    def __init__(self, backend: Backend, spec: ModelSpec, subnet: Literal["a", "b"]) -> None:
        self._backend, self._spec, self._subnet = backend, spec, subnet

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._backend.info

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`."""
        output = self._backend.infer(tiles, with_logits=True)
        logits = output.logits_a if self._subnet == "a" else output.logits_b
        assert logits is not None  # noqa: S101  (asked for)
        return TileOutput(
            probabilities_from_logits(logits, self._spec.activation), evidence_from_logits(logits).uncertainty
        )


@dataclass(frozen=True)
class Row:
    """Figures of one output on one case; Dice by class."""

    output: str
    dice: Mapping[str, float]
    ece: float
    auroc: float
    aurc: float
    error: float

    @property
    def mean_dice(self) -> float:
        """Over the classes that the case has."""
        return statistics.mean(self.dice.values())


def opened_outputs(model: Model, folder: Path, stack: ExitStack) -> dict[str, Backend]:
    """The learned rule, every other one and both subnets, ready to compute.

    Args:
        model: With a UPG.
        folder: Where the model folders of the other rules go.
        stack: Closes the backends.
    """
    outputs: dict[str, Backend] = {"upg": stack.enter_context(open_backend(model, OPTIONS))}
    for rule in RULES:
        export_fusion(FusionRequest(model.folder, rule, folder / rule, tiles_per_set=1))
        outputs[rule] = stack.enter_context(open_backend(load_model(folder / rule), OPTIONS))
    staged = stack.enter_context(open_backend(model, OPTIONS, staged=True))
    return outputs | {
        "subnet A": OneSubnet(staged, model.manifest, "a"),
        "subnet B": OneSubnet(staged, model.manifest, "b"),
    }


def scored(case: Case, output: str, backend: Backend, spec: ModelSpec) -> Row:
    """Segment a case and compare the result with its labels."""
    found = segment_volume(Volume(case.voxels, case.geometry, spec.modality), spec, backend, OPTIONS)
    dice = {
        item.name: score_masks(
            found.label_map == item.label, case.label_map == item.label, case.geometry.spacing_mm, surfaces=False
        ).dice
        for item in spec.classes
        if (case.label_map == item.label).any()
    }
    box = body_box(case.voxels, case.geometry.spacing_mm)
    confidence, decided = _decided(found)
    wrong = (decided != case.label_map)[box]
    uncertainty = np.asarray(found.uncertainty, dtype=np.float32)[box]
    detection = error_detection(uncertainty, wrong)
    ece = expected_calibration_error(confidence[box], ~wrong)
    return Row(output, dice, ece, detection.auroc, detection.aurc, detection.error)


def relative_costs(outputs: Mapping[str, Backend], spec: ModelSpec, n: int) -> dict[str, float]:
    """Median over rounds of the time of a tile divided by that of `mean` in the same round, one tile at a time."""
    tile = np.ascontiguousarray(phantom_tiles(spec, 1).tiles)
    ratios: dict[str, list[float]] = {name: [] for name in ("upg", *RULES)}
    for number in range(n + 1):
        seconds = {}
        for name in ratios:
            started = time.perf_counter()
            outputs[name].infer(tile)
            seconds[name] = time.perf_counter() - started
        if number:  # the first round does not count
            for name in ratios:
                ratios[name].append(seconds[name] / seconds["mean"])
    return {name: statistics.median(values) for name, values in ratios.items()}


def table(case: str, rows: list[Row], costs: Mapping[str, float]) -> Iterator[str]:
    """Markdown lines of one case."""
    classes = list(rows[0].dice)
    heads = [case, *classes, "mean Dice", "ECE", "AUROC", "AURC", "wrong", "cost"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        dice = [f"{row.dice[name]:.3f}" for name in classes]
        cost = f"{costs[row.output]:.2f}" if row.output in costs else "–"
        figures = [f"{row.mean_dice:.3f}", f"{row.ece:.4f}", f"{row.auroc:.3f}", f"{row.aurc:.4f}", f"{row.error:.4f}"]
        yield f"| {row.output} | {' | '.join([*dice, *figures, cost])} |"


def written(text: str, lines: list[str]) -> str:
    """A page with other lines between its marks.

    Raises:
        ValueError: The marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"])


def _decided(found: Segmentation) -> tuple[Float32Array, np.ndarray]:
    """Largest probability and the class that has it, by steps of 1/255; the background has what the others leave."""
    assert found.probabilities is not None  # noqa: S101  (asked for)
    best = 255 - np.minimum(found.probabilities.sum(axis=0, dtype=np.int16), 255)
    decided = np.zeros(best.shape, dtype=np.uint8)
    for label, probability in enumerate(found.probabilities, start=1):
        better = probability > best
        decided[better] = label
        best[better] = probability[better]
    return best.astype(np.float32) / np.float32(255.0), decided


def _said(spec: ModelSpec, machine: Mapping[str, Any], n: int) -> str:
    engine = f"OpenVINO {machine['versions']['openvino']} f32"
    cores = f"{machine['cores']} cores of {machine['processor']}"
    return f"{spec.name} {spec.version}, {engine}, {cores}; {n} rounds of timing."


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path("runs/cases"), help="prepared cases of the demo")
    parser.add_argument("--n", type=int, default=15, help="rounds of timing")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced; else they are printed")
    chosen = parser.parse_args()
    from measuring import environment  # beside this script; the tests import the rest of it from elsewhere

    machine = environment(("ucseg", "openvino", "numpy"))
    model = load_model(default_model_folder())
    in_sample = next(case for case in prepared_cases(chosen.cases) if case.name == _IN_SAMPLE)
    cases = {"A, in no weight": patient_a(), "B, in the weights": in_sample}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        outputs = opened_outputs(model, Path(folder), stack)
        costs = relative_costs(outputs, model.manifest, chosen.n)
        lines = ["", _said(model.manifest, machine, chosen.n), ""]
        for name, case in cases.items():
            rows = [scored(case, output, backend, model.manifest) for output, backend in outputs.items()]
            lines += [*table(name, rows, costs), ""]
            if chosen.write is not None:  # after every case: it takes minutes
                page = chosen.write.read_text(encoding="utf-8")
                chosen.write.write_text(written(page, lines), encoding="utf-8")
    if chosen.write is None:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
