"""TensorRT engines of a model folder, as strongly typed networks: the same code for TensorRT 10, 11 and TensorRT-RTX.

TensorRT-RTX builds for a named compute capability on machines without a GPU; TensorRT itself builds for the GPU that it
finds. Engines built here have never run on a GPU.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ucseg_export.half_precision import with_half_convolutions
from ucseg_runtime.backends.engine_cache import EngineKey, save_engines
from ucseg_runtime.backends.graphs import GRAPHS, channels_of, engine_tile_shape
from ucseg_runtime.errors import AccuracyGateError, BackendError, BackendUnavailableError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model

EnginePrecision = Literal["fp32", "tf32", "fp16"]

_BUILDERS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
"""Name of the builder to the module to import, the one for data centres first."""

_CONVOLUTION = "CONVOLUTION"


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        precision: ``fp32``; ``tf32``: float32 whose products may be rounded to 10 bits of mantissa; ``fp16``:
            convolutions in float16, see `half_precision`.
        max_batch: Most tiles of a call; every engine takes 1 … max_batch.
        compute_capability: Of the GPU, such as ``8.6``; None: what the builder takes by itself.
        version_compatible: Whether later releases of the same major version may load the engines.
        hardware_compatible: Whether GPUs of later generations may, at some cost of speed (TensorRT alone).
    """

    precision: EnginePrecision = "fp16"
    max_batch: int = 4
    compute_capability: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """One engine.

    Attributes:
        plan: Serialised.
        graph: ONNX file that it was built from, in the precision that was asked for.
        layers: Number of layers of the parsed network by kind and precision, such as ``CONVOLUTION HALF``. A strongly
            typed network is built in the precisions that it has.
    """

    plan: bytes
    graph: bytes
    layers: Mapping[str, int]


@dataclass(frozen=True)
class Builder:
    """A loaded TensorRT.

    Attributes:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        package: Its module.
    """

    name: str
    package: Any

    @property
    def version(self) -> str:
        """Of the package."""
        return str(self.package.__version__)


def load_builder() -> Builder:
    """The TensorRT of this machine.

    Raises:
        BackendUnavailableError: None is installed.
    """
    for name, module in _BUILDERS.items():
        try:
            return Builder(name, importlib.import_module(module))
        except ImportError:
            continue
    raise BackendUnavailableError(
        "Building engines needs the 'tensorrt' extra, or 'tensorrt-rtx' on a machine without a GPU:",
        hint="pip install 'ucseg[tensorrt]' or pip install 'ucseg[tensorrt-rtx]'",
    )


def build_engines(
    model: Model, options: BuildOptions, builder: Builder, root: Path
) -> tuple[Path, dict[str, BuiltEngine]]:
    """Build the four stages and the merged graph, and keep them under everything that they depend on.

    Args:
        model: Verified model folder.
        options: What to build.
        builder: What builds.
        root: Folder of all engines; see `engine_cache`.

    Returns:
        Folder of the engines; the engines by artifact key.

    Raises:
        BackendError: A graph cannot be parsed or built; the message holds the builder's own words.
        AccuracyGateError: A network has other precisions than were asked for.
        OutputError: The engines cannot be written.
    """
    engines = {key: build_engine(model.graph(key), key, model.manifest, options, builder) for key in GRAPHS}
    key = EngineKey(
        model_digest=model.digest,
        builder=builder.name,
        version=builder.version,
        compute_capability=options.compute_capability or "default",
        precision=options.precision,
        max_batch=options.max_batch,
    )
    plans = {name: engine.plan for name, engine in engines.items()}
    graphs = {name: engine.graph for name, engine in engines.items()}
    layers = {name: engine.layers for name, engine in engines.items()}
    return save_engines(root, key, plans, graphs, layers), engines


def build_engine(graph: bytes, key: str, spec: ModelSpec, options: BuildOptions, builder: Builder) -> BuiltEngine:
    """Build the engine of one graph.

    Args:
        graph: ONNX file in float32.
        key: Its artifact key.
        spec: Tensors that the engine must have.
        options: What to build.
        builder: What builds.

    Raises:
        BackendError: The graph cannot be parsed or built.
        AccuracyGateError: The network has other precisions than were asked for.
    """
    trt = builder.package
    log = _collecting_logger(trt)
    build = trt.Builder(log)
    network = build.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    content = with_half_convolutions(graph) if options.precision == "fp16" else graph
    if not parser.parse(content):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in found)
        raise BackendError(f"{builder.name} {builder.version} cannot parse graph {key}: {errors}.")
    layers = _layers_by_precision(network)
    _require_precision(key, layers, options.precision)
    _require_tensors(key, network, spec)
    plan = build.build_serialized_network(network, _configuration(trt, build, network, options))
    if plan is None:
        raise BackendError(
            f"{builder.name} {builder.version} cannot build an engine of graph {key}: "
            f"{'; '.join(log.errors) or 'it does not say why'}.",
            hint="On a machine without a GPU use TensorRT-RTX and name a --compute-capability.",
        )
    return BuiltEngine(bytes(plan), content, layers)


def trtexec_line(key: str, spec: ModelSpec, options: BuildOptions) -> str:
    """The same build as a command of NVIDIA's own tool, to be run in the folder of the engines."""
    shapes = {
        name: "x".join(map(str, (channels_of(name, spec), *engine_tile_shape(spec.tiling))))
        for name in GRAPHS[key].inputs
    }
    ranges = [
        f"--{which}Shapes={','.join(f'{name}:{batch}x{shape}' for name, shape in shapes.items())}"
        for which, batch in (("min", 1), ("opt", options.max_batch), ("max", options.max_batch))
    ]
    flags = [
        *(["--versionCompatible"] if options.version_compatible else []),
        *(["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []),
        *([] if options.precision == "tf32" else ["--noTF32"]),
    ]
    return " ".join(["trtexec", f"--onnx={key}.onnx", "--stronglyTyped", *ranges, *flags, f"--saveEngine={key}.plan"])


def _configuration(trt: Any, build: Any, network: Any, options: BuildOptions) -> Any:  # noqa: ANN401  # untyped package
    configuration = build.create_builder_config()
    _set_flag(configuration, trt.BuilderFlag.TF32, options.precision == "tf32")
    _set_flag(configuration, trt.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible)
    if options.hardware_compatible:
        configuration.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capability is not None:
        configuration.num_compute_capabilities = 1
        configuration.set_compute_capability(_capability(trt, options.compute_capability), 0)
    profile = build.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (options.max_batch, *rest), (options.max_batch, *rest))
    configuration.add_optimization_profile(profile)
    return configuration


def _set_flag(configuration: Any, flag: Any, wanted: bool) -> None:  # noqa: ANN401  # untyped package
    if wanted:
        configuration.set_flag(flag)
    else:
        configuration.clear_flag(flag)


def _capability(trt: Any, text: str) -> Any:  # noqa: ANN401  # untyped package
    members = getattr(trt, "ComputeCapability", None)
    if members is None:
        raise BackendUnavailableError(
            "TensorRT builds for the GPU that it finds; only TensorRT-RTX builds for a named compute capability.",
            hint="Leave --compute-capability out, or install ucseg[tensorrt-rtx].",
        )
    known = {name: member for name, member in members.__members__.items() if name.startswith("SM")}
    wanted = "SM" + re.sub(r"\D", "", text)
    if wanted not in known:
        raise BackendUnavailableError(
            f"there is no compute capability {text}; this TensorRT-RTX builds for "
            f"{', '.join(f'{name[2:-1]}.{name[-1]}' for name in known)}."
        )
    return known[wanted]


def _layers_by_precision(network: Any) -> dict[str, int]:  # noqa: ANN401  # untyped package
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter(f"{layer.type.name} {layer.get_output(0).dtype.name}" for layer in layers)
    return dict(sorted(counts.items()))


def _require_precision(key: str, layers: Mapping[str, int], precision: EnginePrecision) -> None:
    """A request for float16 that would build float32, or the other way round, is refused."""
    half = layers.get(f"{_CONVOLUTION} HALF", 0)
    expected = precision == "fp16" and key in ("subnet_a", "subnet_b", "merged")
    if (half > 0) != expected:
        raise AccuracyGateError(
            f"graph {key} has {half} convolutions in float16 after parsing; {precision} was asked for."
        )


def _require_tensors(key: str, network: Any, spec: ModelSpec) -> None:  # noqa: ANN401  # untyped package
    """Inputs and outputs are those of the table of graphs, in float32."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    sides = engine_tile_shape(spec.tiling)
    for tensor in tensors:
        expected = (-1, channels_of(tensor.name, spec), *sides)
        if tuple(tensor.shape) != expected or tensor.dtype.name != "FLOAT":
            raise BackendError(
                f"graph {key} has {tensor.name} of shape {tuple(tensor.shape)} in {tensor.dtype.name}; expected "
                f"{expected} in FLOAT."
            )


def _collecting_logger(trt: Any) -> Any:  # noqa: ANN401  # untyped package
    class Collecting(trt.ILogger):  # type: ignore[misc]  # untyped base
        """Keeps the errors of the builder, which it prints to nobody."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401  # untyped package
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Collecting()
