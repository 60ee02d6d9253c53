"""Pictures and clips through a real server: the very planes that the embedded engine finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from tests.clip_phantom import ClipPhantom, colour_model
from tests.served_phantom import ServedPhantom, serve_phantom
from ucseg_runtime.cli.app import app

CLIP = ClipPhantom()

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A server of a model for colour."""
    with serve_phantom(tmp_path_factory.mktemp("served"), phantom=colour_model()) as ready:
        yield ready


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return CLIP.write(tmp_path / "study" / "clip.dcm").parent


def segment(clip: Path, out: Path, served: ServedPhantom, *options: object) -> Any:
    arguments = ["segment", clip, "--out", out, "--model", served.model.folder, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("scheme", "mode"), [("grpc", "tile"), ("http", "merged")])
def test_frames_are_those_of_the_embedded_engine(
    scheme: str, mode: str, served: ServedPhantom, clip: Path, tmp_path: Path
) -> None:
    embedded = segment(clip, tmp_path / "embedded", served, "--engine", "openvino", "--precision", "f32")
    assert embedded.exit_code == 0, embedded.output
    url = served.server.grpc_url if scheme == "grpc" else served.server.http_url
    remote = segment(clip, tmp_path / "out", served, "--engine", "triton", "--url", url, "--triton-mode", mode)
    assert remote.exit_code == 0, remote.output
    found, expected = (pydicom.dcmread(tmp_path / name / "segmentation.dcm") for name in ("out", "embedded"))
    assert found.NumberOfFrames == CLIP.frames
    np.testing.assert_array_equal(found.pixel_array, expected.pixel_array)
    assert found.pixel_array.any()


def test_a_clip_is_no_volume_for_a_server(served: ServedPhantom, clip: Path, tmp_path: Path) -> None:
    refused = segment(
        clip, tmp_path / "out", served, "--engine", "triton", "--url", served.server.grpc_url, "--triton-mode", "volume"
    )
    assert refused.exit_code not in (0, 1), refused.output
    assert "volume" in refused.stderr
    assert not (tmp_path / "out").exists()
