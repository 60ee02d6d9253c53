"""The learned UPG against every weight-free fusion rule and each subnet alone, on one model, as Markdown.

    python benchmarks/fusion_rules.py [--cases runs/cases] [--n 15] [--write docs/fusion.md]

The network runs once over each case (OpenVINO f32, the stages one by one, all of the volume looked at); its logits are
fused by every rule, by the NumPy reference to which every export is compared, and go through stitching and clean-up as
in deployment. Cases are on the model's 3 mm grid; labels are those of the TotalSegmentator network. Patient A is in no
weight, patient B is in the weights. Dice is that of the labels after the model's clean-up. The other figures are over
the voxels of the box around the patient: ECE over 15 bins of the largest probability; AUROC of the uncertainty for
voxels whose most probable class is wrong; area under the risk-coverage curve (AURC), with the share of wrong voxels,
which it would be for an uncertainty that says nothing. "Cost" is the time of a tile through the four stages relative to
`mean`, median of rounds in which all rules take turns. With --write the tables replace what stands between the marks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ucseg_export.canonical import checked_bytes
from ucseg_export.fusion_stages import fusion_stages
from ucseg_export.parity_tiles import phantom_tiles
from ucseg_export.to_onnx import exported_models
from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.base import Backend, BackendInfo, TileOutput
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import IMAGE
from ucseg_runtime.backends.openvino import OpenVinoEngine
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings, Tensor
from ucseg_runtime.body import body_box
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.fusion_names import WeightFreeRule
from ucseg_runtime.fusion_rules import fuse
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model, default_model_folder, load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.preprocess import resample_to_model_grid
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.volume import Volume
from ucseg_training.calibration import expected_calibration_error
from ucseg_training.data.case import Case
from ucseg_training.data.demo_cases import ALL_KNOWN
from ucseg_training.data.label_grid import majority_labels
from ucseg_training.data.patient_a import patient_a
from ucseg_training.demo_training import prepared_cases
from ucseg_training.error_detection import error_detection
from ucseg_training.metrics import score_masks

RULES: tuple[WeightFreeRule, ...] = get_args(WeightFreeRule)
OUTPUTS = ("upg", *RULES, "subnet A", "subnet B")
OPTIONS = InferenceOptions(engine="openvino", precision="f32", gate=False, skip_air=False, keep_probabilities=True)
BEGIN, END = "<!-- fusion_rules.py: begin -->", "<!-- fusion_rules.py: end -->"

_IN_SAMPLE = "B"


class Remembered:
    """The stages of a model, whose answers to a sequence of calls are kept, so that the network runs once a case.

    Args:
        backend: The model, staged.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._answers: list[TileOutput] = []
        self._next = 0

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._backend.info

    def rewind(self) -> None:
        """The next call is the first one again."""
        self._next = 0

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`; the tiles of a call are those of the same call before."""
        if self._next == len(self._answers):
            self._answers.append(self._backend.infer(tiles, with_logits=True))
        self._next += 1
        return self._answers[self._next - 1]


class Fusing:
    """One output of a model, from the logits of its stages.

    Args:
        network: Gives the logits.
        spec: What the model fixes.
        output: Fusion rule or subnet.
    """

    def __init__(self, network: Remembered, spec: ModelSpec, output: str) -> None:
        self._network, self._spec, self._output = network, spec, output

    @property
    def info(self) -> BackendInfo:
        """See `Backend.info`."""
        return self._network.info

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """See `Backend.infer`."""
        found = self._network.infer(tiles)
        if self._output == "upg":
            return found
        logits_a, logits_b = np.asarray(found.logits_a), np.asarray(found.logits_b)
        if self._output in RULES:
            fused = fuse(self._output, logits_a, logits_b, self._spec.activation)
            return TileOutput(fused.probabilities.astype(np.float32), fused.uncertainty.astype(np.float32))
        logits = logits_a if self._output == "subnet A" else logits_b
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


def relative_costs(model: Model, n: int) -> dict[str, float]:
    """Median over rounds of the time of a tile through all stages divided by that of `mean` in the same round."""
    spec = model.manifest
    chains = {"upg": _sessions({key: model.graph(key) for key in ("upg", "decode")})}
    for rule in RULES:
        made = exported_models(fusion_stages(rule, spec.activation, {}), spec)
        chains[rule] = _sessions({key: checked_bytes(graph, key) for key, graph in made.items()})
    subnets = _sessions({key: model.graph(key) for key in ("subnet_a", "subnet_b")})
    image = {IMAGE: np.ascontiguousarray(phantom_tiles(spec, 1).tiles)}
    ratios: dict[str, list[float]] = {name: [] for name in chains}
    for number in range(n + 1):
        seconds = {name: _seconds([*subnets, *chain], image) for name, chain in chains.items()}
        for name in chains if number else ():  # the first round does not count
            ratios[name].append(seconds[name] / seconds["mean"])
    return {name: statistics.median(values) for name, values in ratios.items()}


def on_model_grid(case: Case, spec: ModelSpec) -> Case:
    """The case as the prepared ones are: labels by the class with the largest share of a voxel."""
    voxels, grid, turn = resample_to_model_grid(Volume(case.voxels, case.geometry, spec.modality), spec.preprocessing)
    labels = majority_labels(np.ascontiguousarray(turn.apply(case.label_map)), grid.shape)
    return Case(case.name, voxels, labels, np.full_like(labels, ALL_KNOWN), grid)


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


def _sessions(graphs: Mapping[str, bytes]) -> list[Session]:
    settings = SessionSettings("f32", usable_cores())
    engine = OpenVinoEngine()
    return [engine.open_session(GraphFile(key, content), settings) for key, content in graphs.items()]


def _seconds(chain: Sequence[Session], image: Mapping[str, Float32Array]) -> float:
    started = time.perf_counter()
    tensors: dict[str, Tensor] = dict(image)
    for session in chain:
        tensors.update(session.run(tensors))
    return time.perf_counter() - started


def _said(spec: ModelSpec, machine: Mapping[str, Any], n: int) -> str:
    engine = f"OpenVINO {machine['versions']['openvino']} f32"
    cores = f"{machine['cores']} cores of {machine['processor']}"
    return f"{spec.name} {spec.version}, {engine}, {cores}, load {machine['load_before']}; {n} rounds of timing."


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path("runs/cases"), help="prepared cases of the demo")
    parser.add_argument("--n", type=int, default=15, help="rounds of timing; 0: none")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced; else they are printed")
    chosen = parser.parse_args()
    from measuring import environment  # beside this script; the tests import the rest of it from elsewhere

    machine = environment(("ucseg", "openvino", "numpy"))
    model = load_model(default_model_folder())
    spec = model.manifest
    in_sample = next(case for case in prepared_cases(chosen.cases) if case.name == _IN_SAMPLE)
    cases = {"A, in no weight": on_model_grid(patient_a(), spec), "B, in the weights": in_sample}
    costs = relative_costs(model, chosen.n) if chosen.n else {}
    lines = ["", _said(spec, machine, chosen.n), ""]
    with open_backend(model, OPTIONS, staged=True) as backend:
        for name, case in cases.items():
            lines += [*table(name, _rows(case, Remembered(backend), spec), costs), ""]
    if chosen.write is None:
        print("\n".join(lines))
        return
    chosen.write.write_text(written(chosen.write.read_text(encoding="utf-8"), lines), encoding="utf-8")


def _rows(case: Case, network: Remembered, spec: ModelSpec) -> list[Row]:
    rows = []
    for output in OUTPUTS:
        network.rewind()
        rows.append(scored(case, output, Fusing(network, spec, output), spec))
    return rows


if __name__ == "__main__":
    main()
