"""TensorRT engines of a model folder, as strongly typed networks: the same code for TensorRT 10, 11 and TensorRT-RTX.

TensorRT-RTX builds for a named compute capability on machines without a GPU; TensorRT itself builds for the GPU that it
finds. Engines built here have never run on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucseg_export.half_precision import with_half_convolutions
from ucseg_export.quantized_convolutions import NOT_CALIBRATED, Calibration, with_quantised_convolutions
from ucseg_export.tensorrt_builder import Builder, BuildOptions, EnginePrecision, TimingCache, configuration
from ucseg_runtime.backends.engine_cache import EngineKey, save_engines
from ucseg_runtime.backends.graphs import GRAPHS, channels_of, engine_tile_shape
from ucseg_runtime.errors import AccuracyGateError, BackendError, InputError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.model_folder import Model

_CONVOLUTIONS = ("CONVOLUTION", "DECONVOLUTION")
_NARROW: Mapping[EnginePrecision, str] = {"fp16": "HALF", "int8": "INT8", "fp8": "FP8"}
"""What the convolutions of a subnet read, where it is not float32."""
_NO_CACHE = TimingCache(Path(), enabled=False)


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


def build_engines(
    model: Model, options: BuildOptions, builder: Builder, root: Path, calibration: Calibration = NOT_CALIBRATED
) -> tuple[Path, dict[str, BuiltEngine]]:
    """Build the four stages and the merged graph, and keep them under everything that they depend on.

    Args:
        model: Verified model folder.
        options: What to build.
        builder: What builds.
        root: Folder of all engines; see `engine_cache`.
        calibration: Of this model, for int8 and fp8.

    Returns:
        Folder of the engines; the engines by artifact key.

    Raises:
        InputError: The precision needs a calibration and there is none.
        BackendError: A graph cannot be parsed or built; the message holds the builder's own words.
        AccuracyGateError: A network has other precisions than were asked for.
        OutputError: The engines cannot be written.
    """
    target = builder.target(options)
    timings = TimingCache.beside(root, builder, target)
    engines = {
        key: build_engine(model.graph(key), key, model.manifest, options, builder, calibration, timings)
        for key in GRAPHS
    }
    key = EngineKey(
        model_digest=model.digest,
        builder=builder.name,
        version=builder.version,
        compute_capability=target,
        precision=options.precision,
        max_batch=options.max_batch,
        calibration=calibration.digest,
    )
    plans = {name: engine.plan for name, engine in engines.items()}
    graphs = {name: engine.graph for name, engine in engines.items()}
    layers = {name: engine.layers for name, engine in engines.items()}
    return save_engines(root, key, plans, graphs, layers), engines


def build_engine(
    graph: bytes,
    key: str,
    spec: ModelSpec,
    options: BuildOptions,
    builder: Builder,
    calibration: Calibration = NOT_CALIBRATED,
    timings: TimingCache = _NO_CACHE,
) -> BuiltEngine:
    """Build the engine of one graph.

    Args:
        graph: ONNX file in float32.
        key: Its artifact key.
        spec: Tensors that the engine must have.
        options: What to build.
        builder: What builds.
        calibration: Of this model, for int8 and fp8.
        timings: Of earlier builds.

    Raises:
        InputError: The precision needs a calibration and there is none.
        BackendError: The graph cannot be parsed or built.
        AccuracyGateError: The network has other precisions than were asked for.
    """
    trt = builder.package
    log = _collecting_logger(trt)
    build = trt.Builder(log)
    network = build.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    content = _in_precision(graph, options.precision, calibration)
    if not parser.parse(content):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in found)
        raise BackendError(f"{builder.name} {builder.version} cannot parse graph {key}: {errors}.")
    layers = _layers_by_precision(network)
    _require_precision(key, layers, options.precision)
    _require_tensors(key, network, spec)
    settings = configuration(builder, build, network, options)
    timings.load_into(settings)
    plan = build.build_serialized_network(network, settings)
    if plan is None:
        raise BackendError(
            f"{builder.name} {builder.version} cannot build an engine of graph {key}: "
            f"{'; '.join(log.errors) or 'it does not say why'}.",
            hint="fp8 needs compute capability 8.9 or more."
            if options.precision == "fp8"
            else "On a machine without a GPU use TensorRT-RTX and name a --compute-capability.",
        )
    timings.save_from(settings)
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


def _in_precision(graph: bytes, precision: EnginePrecision, calibration: Calibration) -> bytes:
    if precision == "fp16":
        return with_half_convolutions(graph)
    if precision == "fp32" or precision == "tf32":  # noqa: PLR1714  (mypy narrows no membership)
        return graph
    if not calibration.digest:
        raise InputError(
            f"{precision} engines are calibrated on tiles of real cases, and there are none.",
            hint="Name a folder with DICOM series or training cases: --cases DIR.",
        )
    return with_quantised_convolutions(graph, calibration, precision)


def _layers_by_precision(network: Any) -> dict[str, int]:  # noqa: ANN401  # untyped package
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = {
        layer.get_output(0).name: layer.get_input(0).dtype.name for layer in layers if layer.type.name == "DEQUANTIZE"
    }
    counts = Counter(f"{layer.type.name} {_precision_of(layer, dequantised)}" for layer in layers)
    return dict(sorted(counts.items()))


def _precision_of(layer: Any, dequantised: Mapping[str, str]) -> str:  # noqa: ANN401  # untyped package
    """What the layer gives; of a convolution between two DEQUANTIZE layers, what it reads once fused with them."""
    given = str(layer.get_output(0).dtype.name)
    if layer.type.name not in _CONVOLUTIONS:
        return given
    # Weights in the precision of the layer are part of it, and no input.
    read = {dequantised.get(tensor.name, given) if tensor else given for tensor in map(layer.get_input, (0, 1))}
    return read.pop() if len(read) == 1 else given


def _require_precision(key: str, layers: Mapping[str, int], precision: EnginePrecision) -> None:
    """A request for 16 or 8 bits that would build float32, or the other way round, is refused."""
    narrow = {name: sum(layers.get(f"{kind} {name}", 0) for kind in _CONVOLUTIONS) for name in sorted(_NARROW.values())}
    has_subnet = key in ("subnet_a", "subnet_b", "merged")
    expected = _NARROW.get(precision) if has_subnet else None
    if [name for name, count in narrow.items() if count] != ([expected] if expected else []):
        found = ", ".join(f"{count} convolutions in {name}" for name, count in narrow.items())
        raise AccuracyGateError(f"graph {key} has {found} after parsing; {precision} was asked for.")


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
