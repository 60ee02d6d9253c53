"""What a caller may choose. What the model fixes stands in `manifest`; where things are, in the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EngineChoice = Literal["auto", "openvino", "onnxruntime"]
PrecisionChoice = Literal["auto", "f32", "bf16"]
SegType = Literal["binary", "labelmap", "fractional"]


@dataclass(frozen=True)
class InferenceOptions:
    """How the network is run.

    Attributes:
        engine: Engine to use; ``auto`` takes the first that is installed, in order of measured speed.
        precision: Arithmetic of the network; ``auto`` takes the manifest's default where the processor has it.
        batch_size: Tiles per call of the engine, at least 1.
        threads: Threads of the engine; 0 means every core that this process may use.
        keep_probabilities: Whether the probabilities of every class are returned on the source grid.
    """

    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    batch_size: int = 1
    threads: int = 0
    keep_probabilities: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """Which objects are written.

    Attributes:
        seg_type: Encoding of the DICOM SEG.
        nifti: Whether label map and uncertainty are also written as NIfTI.
        overwrite: Whether results that the folder already holds are replaced.
    """

    seg_type: SegType = "binary"
    nifti: bool = False
    overwrite: bool = False
