"""The TensorRT of this machine, what it is told to build, and the timings that it keeps."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ucseg_export.quantized_convolutions import QuantisedType
from ucseg_runtime.backends.cuda import cuda_devices, gpu_capability
from ucseg_runtime.backends.tensorrt_engine import installed_tensorrt
from ucseg_runtime.errors import BackendUnavailableError, OutputError

EnginePrecision = Literal["fp32", "tf32", "fp16", QuantisedType]  # typing flattens a Literal inside a Literal

_RTX = "tensorrt_rtx"


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        precision: ``fp32``; ``tf32``: float32 whose products may be rounded to 10 bits of mantissa; ``fp16``:
            convolutions in float16, see `half_precision`; ``int8``, ``fp8``: convolutions that read 8 bits, see
            `quantized_convolutions`.
        max_batch: Most tiles of a call; every engine takes 1 … max_batch.
        compute_capability: Of the GPU, such as ``8.6``; None: what the builder takes by itself.
        version_compatible: Whether later releases of the same major version may load the engines (TensorRT alone).
        hardware_compatible: Whether GPUs of later generations may, at some cost of speed (TensorRT alone).
    """

    precision: EnginePrecision = "fp16"
    max_batch: int = 4
    compute_capability: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


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

    @property
    def keeps_timings(self) -> bool:
        """Whether it times kernels while it builds; TensorRT-RTX does not, and its timing cache does nothing."""
        return self.name != _RTX

    def target(self, options: BuildOptions) -> str:
        """Compute capability that an engine will be for; ``default`` where no GPU and no option says it."""
        return options.compute_capability or (gpu_capability(0) if cuda_devices() else "default")


def load_builder() -> Builder:
    """The TensorRT of this machine.

    Raises:
        BackendUnavailableError: None is installed.
    """
    try:
        return Builder(*installed_tensorrt())
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            "Building engines needs the 'tensorrt' extra, or 'tensorrt-rtx' on a machine without a GPU:",
            hint="pip install 'ucseg[tensorrt]' or pip install 'ucseg[tensorrt-rtx]'",
        ) from error


def configuration(builder: Builder, build: Any, network: Any, options: BuildOptions) -> Any:  # noqa: ANN401  # untyped
    """What the builder is told about one network.

    Args:
        builder: Loaded package.
        build: Its ``Builder``.
        network: Parsed; the profile is for 1 … max_batch tiles.
        options: What to build.

    Raises:
        BackendUnavailableError: This TensorRT has not what the options ask for.
    """
    trt = builder.package
    _require_offered(builder, options)
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


class TimingCache:
    """How fast each kernel was on this GPU, kept beside the engines: a second build is faster and takes the same ones.

    Args:
        file: Where it is kept; need not exist.
        enabled: Whether the builder keeps timings at all.
    """

    def __init__(self, file: Path, enabled: bool) -> None:
        self._file = file
        self._enabled = enabled

    @staticmethod
    def beside(root: Path, builder: Builder, target: str) -> TimingCache:
        """The one of this builder, its version and this compute capability below the folder of all engines."""
        name = f"{builder.name}-{builder.version}_sm{target.replace('.', '')}.timings"
        return TimingCache(root / name, builder.keeps_timings)

    def load_into(self, configuration: Any) -> None:  # noqa: ANN401  # untyped package
        """Let the builder use what is known; timings that it does not accept are measured again."""
        if not self._enabled:
            return
        try:
            known = self._file.read_bytes()
        except OSError:  # there is none yet, or none that can be read: all is measured again
            known = b""
        if not configuration.set_timing_cache(configuration.create_timing_cache(known), ignore_mismatch=False):
            configuration.set_timing_cache(configuration.create_timing_cache(b""), ignore_mismatch=False)

    def save_from(self, configuration: Any) -> None:  # noqa: ANN401  # untyped package
        """Keep what the builder knows now.

        Raises:
            OutputError: The file cannot be written; the old one is still there.
        """
        if not self._enabled:
            return
        part = self._file.with_name(f".{self._file.name}.{os.getpid()}.part")
        try:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(bytes(configuration.get_timing_cache().serialize()))
                os.replace(part, self._file)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"the timings of the engines cannot be written ({type(error).__name__}).",
                hint="Check space and permissions of --out.",
            ) from error


def _require_offered(builder: Builder, options: BuildOptions) -> None:
    """TensorRT-RTX 1.7 warns of one of these options and fails on the other for want of a library that it has not."""
    asked = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatible,
    }
    refused = [option for option, wanted in asked.items() if wanted]
    if builder.name == _RTX and refused:
        raise BackendUnavailableError(
            f"TensorRT-RTX {builder.version} has no {' and no '.join(refused)}; only TensorRT has.",
            hint="Leave it out; without --compute-capability the engines are for every GPU that TensorRT-RTX supports "
            "by itself.",
        )


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
