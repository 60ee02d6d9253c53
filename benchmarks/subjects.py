"""What is measured: two sizes of the trio with one study each, written into a folder that child processes read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import torch
from torch import Tensor, nn

from ucseg_export.export_model import write_model_folder
from ucseg_export.manifest_writer import build_manifest, model_spec
from ucseg_export.quantize import add_int8_graph
from ucseg_export.to_onnx import onnx_graphs
from ucseg_runtime.model_folder import default_model_folder
from ucseg_runtime.packaged_data import write_demo_study
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.demo_model import ANATOMICAL_STRUCTURE, LABELS, PREPROCESSING, TRIO
from ucseg_training.nets import DualNet, TrioConfig

SIZES = ("slim", "full")
CONFIGS = {"slim": TRIO, "full": TrioConfig.upstream_3d()}

_DEMO_CHECKPOINT = Path(__file__).resolve().parent.parent / "training" / "torso-ct-demo-2.0.0.safetensors"
_CALIBRATION_TILES = 6
_FULL_SPACING_MM = (1.5, 1.5, 1.5)
_CROP_SLICES = slice(20, 106)
_CROP_PIXELS = slice(100, 407)
"""86 slices of 307 x 307 pixels are about 144 voxels of 1.5 mm each way: 2 x 2 x 2 tiles of 96 voxels."""


@dataclass(frozen=True)
class Subject:
    """One trio and one study.

    Attributes:
        checkpoint: Weights for torch.
        model: The same as a model folder.
        study: Folder with the DICOM files of one series.
    """

    checkpoint: Path
    model: Path
    study: Path


def write_subject(size: str, folder: Path, *, smallest: bool = False, calibrate_on: Path | None = None) -> Subject:
    """Make what one size needs.

    Args:
        size: ``slim``: the shipped demo model and all of patient A. ``full``: upstream's sizes with random weights,
            and a crop of patient A.
        folder: Where new files go.
        smallest: Whether the study of ``full`` is cut down to a single tile, to try the benchmark out.
        calibrate_on: Cases for a graph with 8-bit integers, which the model then holds too; None: it has none.
    """
    subject = _subject(size, folder, smallest)
    if calibrate_on is None:
        return subject
    model = folder / "quantised"
    shutil.copytree(subject.model, model)
    add_int8_graph(model, calibrate_on, _CALIBRATION_TILES)
    return replace(subject, model=model)


def _subject(size: str, folder: Path, smallest: bool) -> Subject:
    whole = folder / "whole"
    write_demo_study(whole)
    if size == "slim":
        return Subject(_DEMO_CHECKPOINT, default_model_folder(), whole)
    study = folder / "crop"
    write_crop(whole, study, (slice(20, 70), slice(150, 350)) if smallest else (_CROP_SLICES, _CROP_PIXELS))
    net = random_trio(CONFIGS["full"])
    description = description_of(net.config)
    checkpoint, model = folder / "full.safetensors", folder / "full"
    save_checkpoint(checkpoint, net.state_dict(), net.config, 0, description)
    graphs = onnx_graphs(net)
    spec = model_spec(description, net.config)
    write_model_folder(model, build_manifest(spec, graphs, (), {}), graphs, overwrite=False)
    return Subject(checkpoint, model, study)


def write_crop(source: Path, target: Path, box: tuple[slice, slice]) -> None:
    """Copy some slices of a series, and of each the same square of pixels.

    Args:
        source: Folder with uncompressed single-frame images of one axial series.
        target: Folder to make.
        box: Slices from the first position on; rows, which are columns too.
    """
    target.mkdir(parents=True)
    slices, pixels = box
    images = [pydicom.dcmread(path) for path in source.rglob("*.dcm")]
    for image in sorted(images, key=lambda item: float(item.ImagePositionPatient[2]))[slices]:
        cut = np.ascontiguousarray(image.pixel_array[pixels, pixels])
        spacing = np.array([float(value) for value in image.PixelSpacing])
        cosines = np.array([float(value) for value in image.ImageOrientationPatient]).reshape(2, 3)
        # A column index moves along the row cosines, and the second spacing is that between columns.
        moved = pixels.start * (spacing[1] * cosines[0] + spacing[0] * cosines[1])
        position = np.array([float(value) for value in image.ImagePositionPatient]) + moved
        image.ImagePositionPatient = [f"{value:.6f}" for value in position]
        image.Rows, image.Columns = cut.shape
        image.PixelData = cut.tobytes()
        image.save_as(target / f"{image.InstanceNumber}.dcm")


def random_trio(config: TrioConfig) -> DualNet:
    """A trio with random weights whose masks are neither empty nor full.

    The batch norms of the UPG get the statistics of one tile of smooth noise, so that fused logits lie around zero.
    """
    torch.manual_seed(0)
    net = DualNet(config).eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.train()
    with torch.inference_mode():
        net(_smooth_noise(config))
    return net.eval()


def _smooth_noise(config: TrioConfig) -> Tensor:
    coarse = torch.randn(1, config.in_channels, *(side // 8 for side in config.tile_shape))
    return nn.functional.interpolate(coarse, size=config.tile_shape, mode="trilinear")


def description_of(config: TrioConfig) -> dict[str, object]:
    """A CT model around the networks, with the intensities of the demo model."""
    organ = {"value": "39607008", "scheme": "SCT", "meaning": "Lung"}
    preprocessing = PREPROCESSING.model_dump(mode="json") | {"spacing_mm": list(_FULL_SPACING_MM)}
    return {
        "name": "full-size",
        "version": "0.0.0",
        "licence": "Apache-2.0",
        "intended_use": "Benchmarks; the weights are random.",
        "modality": "CT",
        "dim": 3,
        "channels": config.in_channels,
        "classes": [
            {
                "label": label,
                "name": "lungs" if label == LABELS["lungs"] else f"class {label}",
                "category": ANATOMICAL_STRUCTURE.model_dump(mode="json"),
                "type": organ,
                "colour_rgb": [120, 190, 255],
            }
            for label in range(1, config.num_classes)
        ],
        "activation": config.activation,
        "fusion": "upg",
        "default_precision": "f32",
        "preprocessing": preprocessing,
        "tiling": {"tile_shape": list(config.tile_shape)},
        "postprocessing": {},
        "provenance": {"weights": "random"},
    }
