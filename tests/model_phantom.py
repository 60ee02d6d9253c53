"""A model folder whose answers are known: five small ONNX graphs that sort voxels by intensity, and their manifest.

Class k owns the intensities nearest to its centre c_k. With sharpness s the fused logits are s (c_k I − c_k² / 2), and
the greatest is that of the nearest centre; subnet A gives the same, subnet B twice as much, the UPG a third of the sum.
Centres are in network input units, and one unit is 100 HU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucseg_runtime.backends.graphs import GRAPHS, channels_of, engine_tile_shape
from ucseg_runtime.manifest import MANIFEST_NAME, Manifest, manifest_from_json

HU_PER_UNIT = 100.0
_OPSET = 17
_CODE = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical structure"}


@dataclass(frozen=True)
class ModelPhantom:
    """What the model is like; the folder follows from it.

    Attributes:
        centres: Intensity of every class in network input units, background first.
        activation: A sigmoid phantom has two classes.
        sharpness: Factor of the logits.
        tile_shape: Along (z, y, x).
        axis_order: Order of the network's own axes.
        overlap: Least shared fraction of neighbouring tiles.
        weighting: Of a tile's voxels in the average.
        spacing_mm: Of the model grid, along (z, y, x).
        ramp: Added to the intensity per step along the first axis of the network, whichever that is.
        largest_component: Labels of which only the largest component is kept.
        shift_b: Added to the intensity that subnet B sees, so that the subnets differ.
        channel_weights: The intensity is the sum of the channels, in the network's order, with these factors.
        changes: Fields of the manifest that are others than those of a model for CT.
    """

    centres: tuple[float, ...] = (0.0, 0.5, 1.0)
    activation: Literal["sigmoid", "softmax"] = "softmax"
    sharpness: float = 40.0
    tile_shape: tuple[int, int, int] = (16, 16, 16)
    axis_order: Literal["zyx", "xyz"] = "zyx"
    overlap: float = 0.5
    weighting: Literal["uniform", "gaussian"] = "gaussian"
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    ramp: float = 0.0
    largest_component: tuple[int, ...] = ()
    shift_b: float = 0.0
    channel_weights: tuple[float, ...] = (1.0,)
    changes: Mapping[str, object] = field(default_factory=dict)

    def fused_logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the UPG gives for tiles of shape (tiles, 1, z, y, x), when the ramp is 0."""
        centres = np.array(self.centres, dtype=np.float32).reshape(1, -1, 1, 1, 1)
        return np.float32(self.sharpness) * (centres * image - centres**2 / 2)

    def hu(self, label: int) -> float:
        """CT number in the middle of a class."""
        return self.centres[label] * HU_PER_UNIT

    def write(self, folder: Path) -> Path:
        """Write the model folder and return it."""
        folder.mkdir(parents=True)
        skeleton = manifest_from_json(_manifest_json(self, dict.fromkeys(GRAPHS, b"")))
        files = {key: self._graph(key, skeleton).SerializeToString() for key in GRAPHS}
        for key, content in files.items():
            (folder / f"{key}.onnx").write_bytes(content)
        (folder / MANIFEST_NAME).write_text(_manifest_json(self, files), encoding="utf-8")
        return folder

    def _graph(self, key: str, manifest: Manifest) -> onnx.ModelProto:
        stages = {
            "subnet_a": self._subnet("LOGITS_A", 1.0, 0.0),
            "subnet_b": self._subnet("LOGITS_B", 2.0, self.shift_b),
            "upg": self._upg(),
            "decode": self._decode(),
        }
        parts = [part for name, stage in stages.items() for part in stage if key in (name, "merged")]
        weights = {name: value for part in parts for name, value in part.weights.items()}
        return helper.make_model(
            helper.make_graph(
                [part.node for part in parts],
                key,
                [_tensor(name, manifest) for name in GRAPHS[key].inputs],
                [_tensor(name, manifest) for name in GRAPHS[key].outputs],
                [numpy_helper.from_array(value, name) for name, value in weights.items()],
            ),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=8,
        )

    def _subnet(self, output: str, factor: float, shift: float) -> list[_Part]:
        centres = np.array(self.centres, dtype=np.float32)
        scale = np.float32(factor * self.sharpness)
        first = self.tile_shape[0] if self.axis_order == "zyx" else self.tile_shape[2]
        ramp = (np.float32(self.ramp) * np.arange(first, dtype=np.float32) + np.float32(shift)).reshape(1, 1, -1, 1, 1)
        weights = np.array(self.channel_weights, dtype=np.float32)
        kernel = np.outer(scale * centres, weights).reshape(len(centres), -1, 1, 1, 1).astype(np.float32)
        image = f"{output}_image"
        return [
            _part("Add", ["IMAGE", f"{output}_ramp"], [image], {f"{output}_ramp": ramp}),
            _part(
                "Conv",
                [image, f"{output}_kernel", f"{output}_bias"],
                [output],
                {f"{output}_kernel": kernel, f"{output}_bias": -scale * centres**2 / 2},
            ),
        ]

    def _upg(self) -> list[_Part]:
        return [
            _part("Add", ["LOGITS_A", "LOGITS_B"], ["sum"], {}),
            _part("Mul", ["sum", "third"], ["FUSED_LOGITS"], {"third": np.array(1 / 3, dtype=np.float32)}),
        ]

    def _decode(self) -> list[_Part]:
        if self.activation == "softmax":
            probabilities = [_part("Softmax", ["FUSED_LOGITS"], ["PROBABILITIES"], {}, axis=1)]
        else:
            foreground = {"foreground": np.array([1], dtype=np.int64)}
            probabilities = [
                _part("Gather", ["FUSED_LOGITS", "foreground"], ["logit"], foreground, axis=1),
                _part("Sigmoid", ["logit"], ["PROBABILITIES"], {}),
            ]
        classes = {"one": np.float32(1.0), "axis": np.array([1], dtype=np.int64), "K": np.float32(len(self.centres))}
        weights = {name: np.asarray(value) for name, value in classes.items()}
        return [
            *probabilities,
            _part("Softplus", ["FUSED_LOGITS"], ["evidence"], {}),
            _part("Add", ["evidence", "one"], ["alpha"], weights),
            _part("ReduceSum", ["alpha", "axis"], ["strength"], {}, keepdims=1),
            _part("Div", ["K", "strength"], ["UNCERTAINTY"], {}),
        ]


@dataclass(frozen=True)
class _Part:
    """One operator and the constants that it reads."""

    node: onnx.NodeProto
    weights: Mapping[str, npt.NDArray[np.generic]]


def _part(
    operator: str,
    inputs: list[str],
    outputs: list[str],
    weights: Mapping[str, npt.NDArray[np.generic]],
    **attributes: int,
) -> _Part:
    return _Part(helper.make_node(operator, inputs, outputs, **attributes), weights)


def _tensor(name: str, manifest: Manifest) -> onnx.ValueInfoProto:
    shape = ("tiles", channels_of(name, manifest), *engine_tile_shape(manifest.tiling))
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def replace_artifact(folder: Path, key: str, content: bytes) -> None:
    """Write another file for one artifact and make the manifest name it, as an export would."""
    manifest = manifest_from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    artifact = manifest.artifacts[key].model_copy(
        update={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    )
    changed = manifest.model_copy(update={"artifacts": {**manifest.artifacts, key: artifact}})
    (folder / artifact.file).write_bytes(content)
    (folder / MANIFEST_NAME).write_text(changed.model_dump_json(indent=2), encoding="utf-8")


def manifest_fields(phantom: ModelPhantom, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The fields of the phantom's manifest, as JSON would hold them."""
    foreground = range(1, len(phantom.centres))
    return {
        "schema_version": 1,
        "name": "phantom",
        "version": "1.0.0",
        "licence": "Apache-2.0",
        "intended_use": "tests",
        "modality": "CT",
        "dim": 3,
        "channels": 1,
        "classes": [
            {"label": label, "name": f"class {label}", "category": _CODE, "type": _CODE, "colour_rgb": (label, 0, 0)}
            for label in foreground
        ],
        "activation": phantom.activation,
        "fusion": "upg",
        "default_precision": "f32",
        "preprocessing": {
            "spacing_mm": phantom.spacing_mm,
            "intensity": {"kind": "piecewise_linear", "knots": [(0.0, 0.0), (HU_PER_UNIT, 1.0)]},
            "padding_value": -1000.0,
        },
        "tiling": {
            "tile_shape": phantom.tile_shape,
            "axis_order": phantom.axis_order,
            "overlap": phantom.overlap,
            "weighting": phantom.weighting,
        },
        "postprocessing": {"largest_component": phantom.largest_component},
        "provenance": {"made by": "tests"},
        "artifacts": {
            key: {"file": f"{key}.onnx", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for key, content in files.items()
        },
        **phantom.changes,
    }


def _manifest_json(phantom: ModelPhantom, files: Mapping[str, bytes]) -> str:
    return json.dumps(manifest_fields(phantom, files), indent=2)
