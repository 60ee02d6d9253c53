"""What training makes of a picture and what deployment makes of the same picture in DICOM are the same numbers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.clip_phantom import ClipPhantom
from ucseg_runtime.config import WHATEVER_FITS
from ucseg_runtime.dicom.frame_reader import FrameReader
from ucseg_runtime.geometry import frame_grid
from ucseg_runtime.inputs import FoundClip, found_in
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.preprocess import preprocess
from ucseg_runtime.tiling import plan_tiles
from ucseg_runtime.volume import Volume
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.preparation import prepare_source
from ucseg_training.data.read_picture import read_picture_image
from ucseg_training.data.source import SourceCase
from ucseg_training.phantom_training import phantom_plan, phantom_spec


def trained(path: Path, spec: DatasetSpec) -> np.ndarray:
    source = SourceCase(read_picture_image(path, spec), None, from_hdf5=False)
    return prepare_source(source, spec, "case", "patient").image


@pytest.mark.parametrize(("channels", "photometric"), [(3, "RGB"), (1, "MONOCHROME2"), (3, "MONOCHROME2")])
def test_deployment_gives_the_network_what_training_gave_it(channels: int, photometric: str, tmp_path: Path) -> None:
    spec = phantom_spec(channels, side=48)
    clip = ClipPhantom(frames=3, modality=spec.modality, photometric=photometric)
    clip.write(tmp_path / "in" / "clip.dcm")
    model = ModelSpec.model_validate(
        {**phantom_plan(channels, 1, 42, 48).model_spec, "fusion": "upg", "provenance": {}}
    )

    with found_in(tmp_path / "in", model, WHATEVER_FITS) as found:
        assert isinstance(found, FoundClip)
        with FrameReader(found.selection.chosen, model.channels) as reader:
            frames = reader.read(slice(None))
    volume = Volume(frames, frame_grid(*frames.shape[1:]), model.modality)
    prepared = preprocess(volume, model.preprocessing, channels=model.channels)
    tiles = prepared.read(plan_tiles(prepared.spatial_shape, model.tiling).tiles)

    assert tiles.shape == (3, channels, 1, 48, 48)
    for frame in range(3):
        pixels = clip.grey_values(frame) if clip.grey else clip.rgb(frame)[..., ::-1]
        cv2.imwrite(str(tmp_path / "picture.png"), pixels)
        np.testing.assert_array_equal(tiles[frame], trained(tmp_path / "picture.png", spec))
    if photometric == "RGB":
        assert tiles[0, 2].max() > 0.89, "red is the last channel"
        assert tiles[0, 0].max() < 0.6
