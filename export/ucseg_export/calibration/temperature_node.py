"""A temperature as a node of its own in front of the activation that gives the probabilities.

The uncertainty is read from the same fused logits, but past that node: it measures how much evidence there is, and a
temperature would change its scale without making it right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ucseg_export.canonical import checked_bytes
from ucseg_export.export_model import write_model_folder
from ucseg_export.manifest_writer import artifact_of
from ucseg_runtime.backends.graphs import PROBABILITIES
from ucseg_runtime.errors import ModelError
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model

NODE = "decode/temperature"

PROVENANCE = "temperature"
"""Entry of the manifest's provenance that names the temperature."""

_INVERSE = f"{NODE}/inverse"
_ACTIVATIONS = frozenset({"Softmax", "Sigmoid"})


def apply_temperature(model: Model, temperature: float, fitted_on: str, out: Path, *, overwrite: bool) -> Manifest:
    """Write a model folder whose probabilities are those of this one at a temperature.

    Its digest is another one, so its engines have to be proved, and it has to be calibrated, again.

    Args:
        model: Verified model folder.
        temperature: By which the input of the activation is divided; greater than 0.
        fitted_on: What it was fitted on, in words.
        out: Folder to make.
        overwrite: Whether a model folder at `out` is replaced.

    Raises:
        ModelError: The model has a temperature already, or its probabilities come from no softmax or sigmoid.
        OutputError: The folder cannot be written.
    """
    manifest = model.manifest
    if PROVENANCE in manifest.provenance:
        raise ModelError(
            f"the model has a temperature already ({manifest.provenance[PROVENANCE]}).",
            hint="Calibrate the model folder that it was made from.",
        )
    graphs = {key: model.graph(key) for key in manifest.artifacts}
    graphs = {key: with_temperature(content, key, temperature) for key, content in graphs.items()}
    changed = manifest.model_copy(
        update={
            "artifacts": {key: artifact_of(key, content) for key, content in graphs.items()},
            "provenance": {**manifest.provenance, PROVENANCE: f"{temperature:.6g}, {fitted_on}"},
        }
    )
    write_model_folder(out, changed, graphs, overwrite=overwrite)
    return changed


def temperature_of(content: bytes) -> float:
    """The temperature of a graph; 1 where it has none."""
    weights = onnx.load_from_string(content).graph.initializer
    return next((1.0 / float(numpy_helper.to_array(weight)) for weight in weights if weight.name == _INVERSE), 1.0)


def with_temperature(content: bytes, key: str, temperature: float) -> bytes:
    """A graph with the node; one that gives no probabilities stays as it is, byte for byte.

    Args:
        content: ONNX file.
        key: Artifact key, for messages.
        temperature: Greater than 0.

    Raises:
        ModelError: The probabilities come from no softmax or sigmoid.
    """
    graph = onnx.load_from_string(content)
    if PROBABILITIES not in {output.name for output in graph.graph.output}:
        return content
    nodes = list(graph.graph.node)
    (place,) = [index for index, node in enumerate(nodes) if PROBABILITIES in node.output]
    activation = nodes[place]
    if activation.op_type not in _ACTIVATIONS:
        raise ModelError(
            f"graph {key} gives its probabilities by {activation.op_type}; a temperature belongs in front of a softmax "
            "or sigmoid.",
            hint="Use the model as it is: its fusion rule has probabilities of its own.",
        )
    inverse = numpy_helper.from_array(np.array(1.0 / temperature, dtype=np.float32), _INVERSE)
    scaled = helper.make_node("Mul", [activation.input[0], inverse.name], [NODE], name=NODE)
    activation.input[0] = NODE
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:place], scaled, *nodes[place:]])
    graph.graph.initializer.append(inverse)
    return checked_bytes(graph, key)
