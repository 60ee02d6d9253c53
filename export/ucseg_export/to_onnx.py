"""A trained trio as ONNX graphs: one per stage, and the merged one that is their composition."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from ucseg_export.canonical import canonical_model, checked_bytes, merged_model
from ucseg_export.stages import inference_stages, tensor_shape
from ucseg_runtime.backends.graphs import GRAPHS, Graph
from ucseg_runtime.manifest import MERGED, ModelSpec
from ucseg_training.nets import DualNet, TrioConfig

Exporter = Literal["dynamo", "legacy"]
OPSETS: Mapping[Exporter, int] = {"dynamo": 20, "legacy": 17}

_EXAMPLE_TILES = 2
"""A batch of one would be taken for a constant."""


def onnx_graphs(net: DualNet, exporter: Exporter = "dynamo") -> dict[str, bytes]:
    """The graphs of a trio by artifact key, each one a whole ONNX file.

    The number of tiles is free, everything else is fixed; inputs and outputs are float32. The same weights give the
    same bytes with the same version of torch.

    Args:
        net: Trained trio.
        exporter: Which of torch's two exporters; the default is the one that was measured to be better.

    Raises:
        ModelError: A graph holds what must not be in a model folder.
    """
    return exported_stages(inference_stages(net), net.config, exporter)


def exported_stages(stages: Mapping[str, nn.Module], config: TrioConfig, exporter: Exporter) -> dict[str, bytes]:
    """The graphs of given stage modules; see `onnx_graphs`.

    Args:
        stages: Modules by artifact key, in the order in which they run.
        config: Sizes of the networks inside.
        exporter: Which of torch's two exporters.
    """
    models = exported_models(stages, config, exporter)
    models[MERGED] = merged_model(models)
    return {key: checked_bytes(model, key) for key, model in models.items()}


def exported_models(
    stages: Mapping[str, nn.Module], sizes: TrioConfig | ModelSpec, exporter: Exporter = "dynamo"
) -> dict[str, onnx.ModelProto]:
    """Some stage modules in canonical form, by artifact key; see `onnx_graphs`.

    Args:
        stages: Modules by artifact key.
        sizes: Of the tensors that they take and give.
        exporter: Which of torch's two exporters.
    """
    models = {}
    for key, stage in stages.items():
        graph = GRAPHS[key]
        shapes = {name: tensor_shape(name, sizes) for name in (*graph.inputs, *graph.outputs)}
        examples = tuple(torch.zeros(_EXAMPLE_TILES, *shapes[name]) for name in graph.inputs)
        models[key] = canonical_model(_exported(stage, examples, graph, exporter), key, shapes)
    return models


def _exported(stage: nn.Module, examples: tuple[Tensor, ...], graph: Graph, exporter: Exporter) -> onnx.ModelProto:
    with torch.no_grad(), _quiet():
        if exporter == "legacy":
            return _by_tracing(stage, examples, graph)
        return _by_torch_export(stage, examples, graph)


def _by_torch_export(stage: nn.Module, examples: tuple[Tensor, ...], graph: Graph) -> onnx.ModelProto:
    tiles = torch.export.Dim("tiles", min=1)
    program = torch.onnx.export(
        stage,
        examples,
        dynamo=True,
        opset_version=OPSETS["dynamo"],
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_shapes=tuple({0: tiles} for _ in examples),
        custom_translation_table={torch.ops.aten.softplus.default: _plain_softplus()},
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise TypeError("torch.onnx.export gave no program")
    return program.model_proto


def _by_tracing(stage: nn.Module, examples: tuple[Tensor, ...], graph: Graph) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        stage,
        examples,
        file,  # type: ignore[arg-type]  # this exporter takes open files, too
        dynamo=False,
        opset_version=OPSETS["legacy"],
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_axes={name: {0: "tiles"} for name in (*graph.inputs, *graph.outputs)},
    )
    return onnx.load_model_from_string(file.getvalue())


def _plain_softplus() -> Callable[..., Any]:
    """Softplus as one operator; torch 2.13 adds a comparison and a selection that every engine's own makes needless."""
    from onnxscript import opset20

    def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:  # noqa: ANN401  # onnxscript is untyped
        if beta != 1.0:
            raise ValueError("softplus with another beta than 1 has no ONNX operator")
        return opset20.Softplus(x)

    return softplus


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks about its own exporters out of the output; the graphs are checked and compared later."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
