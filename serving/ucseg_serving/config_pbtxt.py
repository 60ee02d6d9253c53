"""The configuration of every Triton model, written from the table of tensors.

Source: ``model_config.proto`` of Triton, as tritonclient ships it; protobuf itself prints the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ucseg_runtime.backends.graphs import GRAPHS, IMAGE
from ucseg_runtime.backends.triton_tensors import (
    DEVICE,
    ENGINE,
    ENGINE_VERSION,
    FINITE_IMAGE,
    MODEL_DIGEST,
    PRECISION,
    PROVEN,
    TritonModel,
    TritonTensor,
    check_model,
    graph_model,
    logits_model,
    stage_model_name,
    tiles_model,
    volume_model,
)
from ucseg_runtime.manifest import STAGES, ModelSpec
from ucseg_serving.protobuf import Message, model_config_pb2, text_format
from ucseg_serving.server_models import (
    GRAPH_PARAMETER,
    IN_FLIGHT_PARAMETER,
    MEMORY_PARAMETER,
    TILES_PARAMETER,
    VOLUME_OVER_PARAMETER,
)
from ucseg_serving.serving_options import Served, ServingOptions, Target

_HEADER = "# Written by ucseg-serve from the manifest of the model. Do not edit: change the table and write it again.\n"
_BACKENDS: Mapping[Target, str] = {"cpu": "python", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}
_QUEUE_LIMIT = 64
_WHOLE_MODEL_VERSION = 1

Connections = Mapping[str, tuple[str, ...]]
"""Artifact key to the inputs that its graph really has; a graph may leave out what it does not use."""


def model_configs(
    spec: ModelSpec, served: Served, connections: Connections, options: ServingOptions
) -> dict[str, Message]:
    """The configuration of every model of the repository.

    Args:
        spec: Classes, channels and tile shape.
        served: What computes.
        connections: Inputs of every graph.
        options: What the site chooses.

    Returns:
        Name of the model to its ``ModelConfig`` message.
    """
    graphs = {key: _graph_config(key, spec, connections[key], options) for key in GRAPHS}
    ensembles = [
        _ensemble_config(model, spec, connections, options) for model in (tiles_model(spec), logits_model(spec))
    ]
    configs = [*ensembles, _check_config(spec, options), *graphs.values(), _volume_config(options)]
    for config in configs:
        _add_identity(config, served)
    return {config.name: config for config in configs}


def as_pbtxt(config: Message) -> str:
    """The text of ``config.pbtxt``."""
    return _HEADER + str(text_format.MessageToString(config))


def from_pbtxt(text: str) -> Message:
    """Parse ``config.pbtxt`` as Triton does; unknown fields raise ``text_format.ParseError``."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _graph_config(key: str, spec: ModelSpec, inputs: Sequence[str], options: ServingOptions) -> Message:
    table = graph_model(key, spec)
    model = TritonModel(table.name, tuple(item for item in table.inputs if item.name in inputs), table.outputs)
    config = _base_config(model, options)
    config.backend = _BACKENDS[options.target]
    _add_instances(config, options)
    _add_batching(config, options)
    _limit_queue(config, options.tile_timeout_s, options)
    _add_warm_up(config, model, 1)
    if options.target == "cpu":
        config.parameters[GRAPH_PARAMETER].string_value = key
    elif options.max_batch > 1:
        _add_warm_up(config, model, options.max_batch)
    return config


def _check_config(spec: ModelSpec, options: ServingOptions) -> Message:
    """On the processor for every target: it reads what came over the network."""
    config = _base_config(check_model(spec), options)
    config.backend = "python"
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=options.instances)
    _limit_queue(config, options.tile_timeout_s, options)
    return config


def _ensemble_config(model: TritonModel, spec: ModelSpec, connections: Connections, options: ServingOptions) -> Message:
    """The check, then subnet A and B at the same time, then the UPG, then the read-out; tensors keep their names."""
    config = _base_config(model, options)
    config.platform = "ensemble"
    check = check_model(spec)
    _add_step(config, check.name, {tensor.name: tensor.name for tensor in check.inputs}, (FINITE_IMAGE,))
    for key in STAGES:
        sources = {name: FINITE_IMAGE if name == IMAGE else name for name in connections[key]}
        _add_step(config, stage_model_name(key), sources, GRAPHS[key].outputs)
    return config


def _add_step(config: Message, model: str, sources: Mapping[str, str], outputs: Sequence[str]) -> None:
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    for name, source in sources.items():
        step.input_map[name] = source
    for name in outputs:
        step.output_map[name] = name


def _volume_config(options: ServingOptions) -> Message:
    config = _base_config(volume_model(), options)
    config.backend = "python"
    # The volume model itself computes on the processor, whatever computes its tiles.
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=options.instances)
    _limit_queue(config, options.volume_timeout_s, options)
    config.parameters[VOLUME_OVER_PARAMETER].string_value = options.volume_over
    # On the processor tiles of one request are computed one after the other, those of several at the same time.
    tiles = 1 if options.target == "cpu" else options.max_batch
    config.parameters[TILES_PARAMETER].string_value = str(tiles)
    config.parameters[IN_FLIGHT_PARAMETER].string_value = str(options.instances)
    config.parameters[MEMORY_PARAMETER].string_value = str(round(options.volume_memory_gb * 1e9))
    return config


def _base_config(model: TritonModel, options: ServingOptions) -> Message:
    config = model_config_pb2.ModelConfig(name=model.name)
    config.max_batch_size = options.max_batch if model.batched else 0
    for tensor in model.inputs:
        config.input.add(optional=tensor.optional, **_tensor_fields(tensor))
    for tensor in model.outputs:
        config.output.add(**_tensor_fields(tensor))
    config.version_policy.specific.versions.append(_WHOLE_MODEL_VERSION)
    return config


def _tensor_fields(tensor: TritonTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": model_config_pb2.DataType.Value(f"TYPE_{tensor.data_type}"),
        "dims": [-1 if side is None else side for side in tensor.shape],
    }


def _add_instances(config: Message, options: ServingOptions) -> None:
    group = model_config_pb2.ModelInstanceGroup
    kind = group.KIND_CPU if options.target == "cpu" else group.KIND_GPU
    config.instance_group.add(kind=kind, count=options.instances)


def _add_batching(config: Message, options: ServingOptions) -> None:
    """On a processor requests are not merged: one instance would compute them one after the other while others idle."""
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(1 if options.target == "cpu" else options.max_batch)
    if options.target != "cpu":
        batching.max_queue_delay_microseconds = options.queue_delay_us


def _limit_queue(config: Message, timeout_s: float, options: ServingOptions) -> None:
    """Requests that waited too long are refused, not delayed; clients may ask for a shorter time."""
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = round(timeout_s * 1e6)
    policy.allow_timeout_override = True
    if options.queue_may_be_limited:
        policy.max_queue_size = _QUEUE_LIMIT


def _add_warm_up(config: Message, model: TritonModel, batch_size: int) -> None:
    """A first run before the model counts as ready."""
    warm_up = config.model_warmup.add(name=f"{batch_size} tiles", batch_size=batch_size)
    for tensor in model.inputs:
        fields = _tensor_fields(tensor)
        entry = warm_up.inputs[fields.pop("name")]
        entry.data_type = fields["data_type"]
        entry.dims.extend(fields["dims"])
        entry.zero_data = True


def _add_identity(config: Message, served: Served) -> None:
    values = {
        MODEL_DIGEST: served.model_digest,
        ENGINE: served.engine,
        ENGINE_VERSION: served.engine_version,
        PRECISION: served.precision,
        DEVICE: served.device,
        PROVEN: "true" if served.proven else "false",
    }
    for name, value in values.items():
        config.parameters[name].string_value = value
