"""What a caller may choose. What the model fixes stands in `manifest`; where things are, in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ucseg_runtime.series_rules import SeriesRule
from ucseg_runtime.server_options import TritonServer

EngineName = Literal["openvino", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
EngineChoice = Literal["auto", EngineName]  # typing flattens a Literal inside a Literal
Mode = Literal["auto", "latency", "throughput"]
PrecisionChoice = Literal["auto", "f32", "tf32", "bf16", "fp16", "int8", "fp8"]
SegType = Literal["binary", "labelmap", "fractional"]
Compression = Literal["none", "rle", "jpeg2000", "jpeg-ls"]
CompressionChoice = Literal["auto", Compression]
EmptyFrames = Literal["omit", "keep"]
UncertaintyType = Literal["pm", "seg"]
ExtraFormat = Literal["nifti", "nrrd", "rtstruct", "preview", "report"]
FailOn = Literal["review", "reject"]
ViewerName = Literal["any", "ohif", "slicer", "weasis", "legacy-pacs"]

SEG_COMPRESSIONS: Mapping[SegType, tuple[Compression, ...]] = MappingProxyType(
    {
        "binary": ("none", "jpeg2000"),
        "labelmap": ("rle", "none", "jpeg2000", "jpeg-ls"),
        "fractional": ("rle", "none", "jpeg2000", "jpeg-ls"),
    }
)
"""What each encoding can be compressed with; the first one is what ``auto`` takes.

RLE and JPEG-LS work on whole bytes, and a binary segmentation has one bit a voxel. Source: DICOM PS3.5 8.2.1 to 8.2.4.
"""


@dataclass(frozen=True)
class InferenceOptions:
    """How the network is run.

    Attributes:
        engine: Engine to use; ``auto`` takes the fastest of those that passed the accuracy gate.
        precision: Arithmetic of the network; ``auto`` takes the fastest that passed the gate.
        gate: Whether engines that did not pass the accuracy gate for this model are refused; without it ``auto`` means
            the first engine that is installed, in f32, and every output says that the gate was skipped.
        batch_size: Tiles per call of the engine; 0 means as many as it computes at the same time.
        threads: Threads of the engine; 0 means every core that this process may use.
        skip_air: Whether the network looks at the patient alone, and not at the air and table around; what is left out
            counts as background with an uncertainty of 0. For CT; other modalities are looked at whole.
        mode: Tiles at the same time, where the engine can: ``latency``: one, on all cores; ``throughput``: one a core;
            ``auto``: as many as one study is fastest with. The results are the same.
        most_parallel_tiles: Limit to the tiles at the same time; 0 means none.
        max_memory_mb: Memory in MB that a run may take by the prediction of `planning`; 0 means no limit. A run that
            needs more computes fewer tiles at the same time, or is refused before its pixels are read.
        cache_folder: Where compiled models are kept, so that the next start is faster; None means nowhere.
        device: Number of the GPU, for engines that compute on one.
        gpu_memory_mb: Most memory in MB that ONNX Runtime may take on the GPU; 0 for no limit.
        keep_probabilities: Whether the probabilities of every class are returned on the source grid.
        subnet_agreement: Whether it is counted how far the two subnets agree. Their logits are needed for that, so the
            stages run one by one, and precisions that have no stages are refused.
        second_look: Whether tiles half-way between those of the plan are computed where the result is uncertain, and
            averaged with it. Needs the whole result of the first pass in memory.
        server: Triton server that runs the network; None: an engine of this machine.
    """

    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    gate: bool = True
    batch_size: int = 0
    threads: int = 0
    skip_air: bool = True
    mode: Mode = "auto"
    most_parallel_tiles: int = 0
    max_memory_mb: int = 0
    cache_folder: Path | None = None
    device: int = 0
    gpu_memory_mb: int = 0
    keep_probabilities: bool = False
    subnet_agreement: bool = False
    second_look: bool = False
    server: TritonServer | None = None


@dataclass(frozen=True)
class InputOptions:
    """Which series of an input is segmented, and what it may lack.

    Attributes:
        series_uid: Series Instance UID that the caller insists on; None for the one that fits the model best.
        volume: Which one of a series that holds several, from 1, as ``ucseg inspect`` counts them; 0 for the one that
            fits best.
        allow_gaps: Most missing slices in a row that are bridged by their neighbours.
        expect_instances: Number of slices that the series must have; 0 for any.
        rules: That the series must pass, beside those of the model.
    """

    series_uid: str | None = None
    volume: int = 0
    allow_gaps: int = 0
    expect_instances: int = 0
    rules: tuple[SeriesRule, ...] = ()

    def with_rules(self, rules: tuple[SeriesRule, ...]) -> InputOptions:
        """The same with these rules before its own."""
        return replace(self, rules=(*rules, *self.rules))


WHATEVER_FITS = InputOptions()
"""No wishes of the caller."""


@dataclass(frozen=True)
class SegEncoding:
    """How a DICOM SEG is stored; the voxels are the same.

    Attributes:
        seg_type: Encoding of the labels.
        compression: Of the frames; ``auto`` becomes the usual one of the encoding, see `SEG_COMPRESSIONS`.
        empty_frames: Whether frames without any voxel of their segment are left out. They never are where nothing at
            all was found.

    Raises:
        ValueError: The encoding cannot have this compression.
    """

    seg_type: SegType = "binary"
    compression: CompressionChoice = "auto"
    empty_frames: EmptyFrames = "omit"

    def __post_init__(self) -> None:
        possible = SEG_COMPRESSIONS[self.seg_type]
        if self.compression == "auto":
            object.__setattr__(self, "compression", possible[0])
        elif self.compression not in possible:
            raise ValueError(
                f"a {self.seg_type} segmentation cannot be compressed with {self.compression} "
                f"(possible: {', '.join(possible)})"
            )


@dataclass(frozen=True)
class OutputOptions:
    """Which objects are written.

    Attributes:
        encoding: Of the DICOM SEG.
        uncertainty: ``pm``: as a Parametric Map in 16 bits; ``seg``: as a fractional segmentation in 8 bits, for
            viewers that know no Parametric Maps.
        viewer: For which viewer `encoding` was chosen; the record says so.
        extras: What is written beside segmentation, uncertainty and report.
        overwrite: Whether results that the folder already holds are replaced.
    """

    encoding: SegEncoding = SegEncoding()
    uncertainty: UncertaintyType = "pm"
    viewer: ViewerName = "any"
    extras: frozenset[ExtraFormat] = frozenset()
    overwrite: bool = False

    @property
    def seg_type(self) -> SegType:
        """Encoding of the labels in the DICOM SEG."""
        return self.encoding.seg_type
