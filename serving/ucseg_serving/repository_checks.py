"""What must be true of a repository before a server is started on it; a server says less, and later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ucseg_runtime.backends.triton_tensors import IDENTITY, NUMPY_TYPES, VOLUME_MODEL
from ucseg_runtime.errors import RepositoryError
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_serving.config_pbtxt import from_pbtxt
from ucseg_serving.protobuf import Message, model_config_pb2, text_format
from ucseg_serving.server_models import MODEL_FOLDER, VOLUME_OVER_PARAMETER

_FILES: Mapping[str, str] = {"python": "model.py", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_AGAIN = "Write the repository again: ucseg-serve repository MODEL_DIR --out REPO --overwrite."
_MOST_MESSAGE_BYTES = 2**31 - 1
_LARGEST_ELEMENT = 8
_PYTHON_PROCESS_BYTES = 250e6
_WEIGHTS_FACTOR = 3
"""What an engine holds of a graph: the file while it is read, the compiled weights, and about as much for tiles."""

Configs = Mapping[str, Message]
Tensor = tuple[int, tuple[int, ...]]
"""Element type and sides."""


def check_repository(folder: Path) -> None:
    """Refuse a repository on which no server would work.

    Raises:
        RepositoryError: The message names the model, the tensor, what was found and what was expected.
    """
    configs = _read_configs(folder)
    for name, config in configs.items():
        _check_files(folder / name, config)
        _check_identity(config, configs)
        _check_message_size(config)
        if config.HasField("ensemble_scheduling"):
            _check_ensemble(config, configs)
    _check_volume_model(folder, configs)
    _check_memory(folder, configs)


def memory_estimate(folder: Path, configs: Configs) -> float:
    """Bytes of the processor's memory that the Python models will take at least."""
    python = [config for config in configs.values() if config.backend == "python"]
    weights = sum(file.stat().st_size for file in (folder / VOLUME_MODEL / MODEL_FOLDER).glob("*.onnx"))
    processes = sum(_instances(config) for config in python) * _PYTHON_PROCESS_BYTES
    return processes + _WEIGHTS_FACTOR * weights + sum(_instances(item) * _batch_bytes(item) for item in python)


def _read_configs(folder: Path) -> dict[str, Message]:
    configs = {}
    for path in sorted(folder.glob("*/config.pbtxt")):
        try:
            config = from_pbtxt(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise RepositoryError(f"{path.parent.name}: config.pbtxt cannot be read: {error}.", hint=_AGAIN) from error
        if config.name != path.parent.name:
            raise RepositoryError(f"folder {path.parent.name} holds the model {config.name}.", hint=_AGAIN)
        configs[config.name] = config
    if VOLUME_MODEL not in configs:
        raise RepositoryError(f"this is no repository of ucseg: no {VOLUME_MODEL}/config.pbtxt.", hint=_AGAIN)
    return configs


def _check_files(folder: Path, config: Message) -> None:
    version = str(config.version_policy.specific.versions[0])
    wanted = _FILES.get(config.backend)
    missing = not (folder / version).is_dir() or (wanted is not None and not (folder / version / wanted).is_file())
    if missing:
        raise RepositoryError(f"{config.name}: {version}/{wanted or ''} is missing.", hint=_AGAIN)


def _check_identity(config: Message, configs: Configs) -> None:
    reference = configs[VOLUME_MODEL].parameters
    for name in IDENTITY:
        found = config.parameters[name].string_value if name in config.parameters else "nothing"
        expected = reference[name].string_value if name in reference else "something"
        if found != expected:
            raise RepositoryError(
                f"{config.name}: parameter {name} is {found}; {VOLUME_MODEL} says {expected}. "
                "All models of a repository are of one model folder and engine.",
                hint=_AGAIN,
            )


def _check_ensemble(config: Message, configs: Configs) -> None:
    """Follow the tensors from step to step: each is there, of one type and shape, before it is read."""
    known = {tensor.name: _tensor(tensor) for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            raise RepositoryError(f"{config.name}: step {step.model_name} is no model of the repository.", hint=_AGAIN)
        _check_step(config, step, configs[step.model_name], known)
    for tensor in config.output:
        _check_same(config.name, tensor.name, known.get(tensor.name), _tensor(tensor))


def _check_step(config: Message, step: Message, model: Message, known: dict[str, Tensor]) -> None:
    if config.max_batch_size > model.max_batch_size:
        raise RepositoryError(
            f"{config.name} takes {config.max_batch_size} tiles; its step {model.name} takes {model.max_batch_size}.",
            hint=_AGAIN,
        )
    inputs, outputs = ({item.name: _tensor(item) for item in side} for side in (model.input, model.output))
    for kind, mapped, declared in (("input", step.input_map, inputs), ("output", step.output_map, outputs)):
        wrong = sorted(set(mapped) ^ set(declared)) if kind == "input" else sorted(set(mapped) - set(declared))
        if wrong:
            raise RepositoryError(
                f"{config.name}: step {model.name} and its model differ in the {kind} {', '.join(wrong)}.", hint=_AGAIN
            )
    for name, source in step.input_map.items():
        _check_same(f"{config.name}: step {model.name}", source, known.get(source), inputs[name])
    known.update({target: outputs[name] for name, target in step.output_map.items()})


def _check_same(place: str, name: str, found: Tensor | None, expected: Tensor) -> None:
    if found is None:
        raise RepositoryError(f"{place}: no earlier step gives {name}.", hint=_AGAIN)
    if found != expected:
        raise RepositoryError(f"{place}: {name} is {_words(found)}; expected {_words(expected)}.", hint=_AGAIN)


def _check_message_size(config: Message) -> None:
    if _batch_bytes(config) > _MOST_MESSAGE_BYTES:
        raise RepositoryError(
            f"{config.name}: {config.max_batch_size} tiles with all outputs are "
            f"{_batch_bytes(config) / 1e9:.1f} GB; a gRPC message holds 2.1 GB.",
            hint="Write the repository again with a smaller --max-batch.",
        )


def _check_volume_model(folder: Path, configs: Configs) -> None:
    over = configs[VOLUME_MODEL].parameters[VOLUME_OVER_PARAMETER].string_value
    if over not in configs:
        raise RepositoryError(f"{VOLUME_MODEL} asks {over}, which is no model of the repository.", hint=_AGAIN)
    if not (folder / VOLUME_MODEL / MODEL_FOLDER / MANIFEST_NAME).is_file():
        raise RepositoryError(f"{VOLUME_MODEL}: {MODEL_FOLDER}/{MANIFEST_NAME} is missing.", hint=_AGAIN)


def _check_memory(folder: Path, configs: Configs) -> None:
    needed, free = memory_estimate(folder, configs), _available_bytes()
    if needed > free:
        raise RepositoryError(
            f"the Python models need about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free.",
            hint="Use fewer --instances, a smaller --max-batch, or another machine.",
        )


def _available_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return float(fields["MemAvailable"][0]) * 1024 if "MemAvailable" in fields else math.inf


def _instances(config: Message) -> int:
    return int(sum(group.count for group in config.instance_group))


def _batch_bytes(config: Message) -> int:
    """Of all tensors of the largest request, as far as their sides are fixed."""
    fixed = [tensor for tensor in (*config.input, *config.output) if min(tensor.dims) > 0]
    return max(1, int(config.max_batch_size)) * sum(_bytes(tensor) for tensor in fixed)


def _bytes(tensor: Message) -> int:
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    sizes = {str(key): item.itemsize for key, item in NUMPY_TYPES.items()}
    return int(math.prod(tensor.dims)) * sizes.get(name, _LARGEST_ELEMENT)


def _tensor(tensor: Message) -> Tensor:
    return tensor.data_type, tuple(tensor.dims)


def _words(tensor: Tensor) -> str:
    return f"{model_config_pb2.DataType.Name(tensor[0])} {list(tensor[1])}"
