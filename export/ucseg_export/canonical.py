"""ONNX graphs in one fixed form: names that follow from the graph alone, nothing in it that is not needed to run it.

Exporters write source paths, stack traces and running numbers into their graphs. Here every value is called after its
stage and operator, so that the same weights give the same bytes, and the stages can be joined without clashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper

from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import ModelError
from ucseg_runtime.manifest import MERGED, STAGES
from ucseg_runtime.onnx_scan import objections

TILES = "tiles"
"""Name of the free first axis."""

_PRODUCER = "ucseg-export"
_FORBIDDEN_OPERATORS = frozenset({"Dropout", "BatchNormalization", "RandomNormal", "RandomUniform", "Bernoulli"})
"""Operators of training, and those that the rewrites fold away."""


def canonical_model(exported: onnx.ModelProto, key: str, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """What an exporter wrote for one stage, in canonical form.

    Inputs are those of the stage's table entry, also where the graph does not use one of them: exporters and
    optimisers may drop such an input, and a caller feeds every declared one.

    Args:
        exported: Graph whose inputs and outputs have the names of the table.
        key: Artifact key of the stage; becomes the prefix of every inner name.
        shapes: Channels and sides of every input and output, without the free axis.
    """
    source = exported.graph
    public = {*GRAPHS[key].inputs, *GRAPHS[key].outputs}
    nodes, renamed = _canonical_nodes(source.node, key, public)
    weights = _canonical_weights(source, nodes, key, renamed)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    graph = helper.make_graph(
        nodes,
        key,
        [_declared(name, shapes) for name in GRAPHS[key].inputs],
        [_declared(name, shapes) for name in GRAPHS[key].outputs],
        weights,
    )
    return _model(graph, exported.ir_version, exported.opset_import)


def merged_model(stages: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The stages as one graph from IMAGE to PROBABILITIES and UNCERTAINTY; logits stay inside.

    Args:
        stages: By artifact key, in canonical form, so that no two names of different stages are equal.

    Raises:
        ModelError: Stages of different versions of the operators do not mean the same in one graph.
    """
    graphs = [stages[key].graph for key in STAGES]
    declared = {info.name: info for graph in graphs for info in (*graph.input, *graph.output)}
    merged = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        MERGED,
        [declared[name] for name in GRAPHS[MERGED].inputs],
        [declared[name] for name in GRAPHS[MERGED].outputs],
        [weight for graph in graphs for weight in graph.initializer],
    )
    newest = max((stages[key] for key in STAGES), key=_opset)
    for key in STAGES:
        _require_same_meaning(stages[key], key, _opset(newest))
    return _model(merged, max(stages[key].ir_version for key in STAGES), newest.opset_import)


def _opset(model: onnx.ModelProto) -> int:
    versions: list[int] = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    return max(versions)


def _require_same_meaning(model: onnx.ModelProto, key: str, opset: int) -> None:
    """A graph means the same under a newer set of operators if none of its operators was defined anew in between."""
    own = _opset(model)
    changed = {
        node.op_type
        for node in model.graph.node
        if onnx.defs.get_schema(node.op_type, own).since_version
        != onnx.defs.get_schema(node.op_type, opset).since_version
    }
    if changed:
        raise ModelError(
            f"graph {key} has the operators {', '.join(sorted(changed))} of opset {own}, which mean something else in "
            f"opset {opset} of the other stages.",
            hint="Export the model again with ucseg-export onnx.",
        )


def checked_bytes(model: onnx.ModelProto, key: str) -> bytes:
    """The file of a graph, after every check that needs no reference.

    Raises:
        ModelError: The graph is not valid ONNX, or holds what belongs to training or what the runtime refuses.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"graph {key} is not valid ONNX.", hint="Try another version of torch.") from error
    found = sorted(_left_from_training(model.graph.node))
    if found:
        raise ModelError(f"graph {key} holds operators that inference must not have: {', '.join(found)}.")
    content: bytes = model.SerializeToString(deterministic=True)
    refused = sorted(objections(content))
    if refused:
        raise ModelError(f"graph {key} holds {' and '.join(refused)}, which the runtime refuses.")
    return content


def _left_from_training(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Operators that should have been removed or folded, and those that are told to behave as in training."""
    return {
        node.op_type
        for node in nodes
        if node.op_type in _FORBIDDEN_OPERATORS
        or any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    }


def _canonical_nodes(
    nodes: Iterable[onnx.NodeProto], key: str, public: set[str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Nodes with new names for themselves and their outputs, inputs as they were; and old to new names."""
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    result = []
    for node in nodes:
        name = f"{key}/{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        for index, output in enumerate(node.output):
            if output and output not in public:
                renamed[output] = name if index == 0 else f"{name}:{index}"
        copied = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=name, input=node.input)
        copied.output.extend(renamed.get(output, output) for output in node.output)
        copied.attribute.extend(_bare_attribute(item) for item in sorted(node.attribute, key=lambda item: item.name))
        result.append(copied)
    return result, renamed


def _bare_attribute(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    copied = onnx.AttributeProto()
    copied.CopyFrom(attribute)
    copied.ClearField("doc_string")
    return copied


def _canonical_weights(
    graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], key: str, renamed: dict[str, str]
) -> list[TensorProto]:
    """Weights that some node reads, in the order of first use; their new names are added to `renamed`."""
    found = {weight.name: weight for weight in graph.initializer}
    used = dict.fromkeys(name for node in nodes for name in node.input if name in found)
    result = []
    for index, name in enumerate(used):
        # Exporters keep the path of a parameter as its name, and number the constants that they make.
        renamed[name] = f"{key}/{name}" if "." in name else f"{key}/constant_{index}"
        copied = TensorProto()
        copied.CopyFrom(found[name])
        copied.name = renamed[name]
        copied.ClearField("doc_string")
        copied.ClearField("metadata_props")
        result.append(copied)
    return result


def _declared(name: str, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [TILES, *shapes[name]])


def _model(graph: onnx.GraphProto, ir_version: int, opsets: Iterable[onnx.OperatorSetIdProto]) -> onnx.ModelProto:
    standard = [opset for opset in opsets if opset.domain in ("", "ai.onnx")]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=standard, producer_name=_PRODUCER)
