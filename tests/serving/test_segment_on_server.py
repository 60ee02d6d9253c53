"""Whole segmentations through a real server: the same voxels as from the embedded engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.phantoms import CtPhantom, write_ct_series
from tests.served_phantom import PHANTOM, ServedPhantom
from tests.volume_phantom import OBLIQUE, centred_geometry, volume_of
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.decision import decide
from ucseg_runtime.errors import BackendUnavailableError, EngineMismatchError, InputError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation, measure, ready_to_write
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_runtime.verification import Evidence, verify_results
from ucseg_runtime.volume import Volume

Scheme = Literal["grpc", "http"]
EMBEDDED = InferenceOptions(engine="openvino", precision="f32")
VOLUME = volume_of(centred_geometry((14, 40, 36), (3.0, 1.5, 1.2), OBLIQUE))


def server(served: ServedPhantom, scheme: Scheme, **changes: object) -> TritonServer:
    return replace(TritonServer((server_address(served.url(scheme)),), timeout_s=60.0), **changes)


@pytest.fixture(scope="module")
def expected(served_phantom: ServedPhantom) -> Segmentation:
    with open_backend(served_phantom.model, EMBEDDED) as backend:
        result = segment_volume(VOLUME, served_phantom.model.manifest, backend, EMBEDDED)
    assert {1, 2} <= set(np.unique(result.label_map)), "the phantom must have both labels to compare"
    return result


def through_server(served: ServedPhantom, remote: TritonServer, volume: Volume = VOLUME) -> Segmentation:
    if remote.mode == "volume":
        return segment_on_server(volume, served.model, remote, gate=True)[0]
    options = InferenceOptions(server=remote)
    with open_backend(served.model, options) as backend:
        return segment_volume(volume, served.model.manifest, backend, options)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("mode", ["tile", "merged"])
def test_tiles_give_the_very_voxels_of_the_embedded_engine(
    served_phantom: ServedPhantom, expected: Segmentation, scheme: Scheme, mode: str
) -> None:
    result = through_server(served_phantom, server(served_phantom, scheme, mode=mode))
    np.testing.assert_array_equal(result.label_map, expected.label_map)
    np.testing.assert_array_equal(result.uncertainty, expected.uncertainty)
    assert result.engine.name == "triton-openvino"
    assert result.engine.proven


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_volume_mode_gives_the_same_labels_and_the_uncertainty_in_steps(
    served_phantom: ServedPhantom, expected: Segmentation, scheme: Scheme, dtype: type[np.generic]
) -> None:
    volume = Volume(VOLUME.voxels.astype(dtype), VOLUME.geometry, "CT")
    result = through_server(served_phantom, server(served_phantom, scheme, mode="volume"), volume)
    np.testing.assert_array_equal(result.label_map, expected.label_map)
    np.testing.assert_allclose(result.uncertainty, expected.uncertainty, atol=0.5 / 65535 + 1e-7)
    result.label_map[0, 0, 0] = 0  # the caller owns what it gets


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_a_result_of_a_server_is_decided_upon_as_one_of_the_embedded_engine(
    served_phantom: ServedPhantom, expected: Segmentation, mode: Literal["tile", "volume"]
) -> None:
    result = through_server(served_phantom, server(served_phantom, "grpc", mode=mode))
    decisions = [
        decide(VOLUME, ready_to_write(found), measure(found), served_phantom.model) for found in (expected, result)
    ]
    assert decisions[0] == decisions[1]
    assert decisions[0].reasons


def test_volume_mode_refuses_what_it_cannot_return(served_phantom: ServedPhantom) -> None:
    remote = server(served_phantom, "grpc", mode="volume")
    with pytest.raises(BackendUnavailableError, match="no probabilities"):
        segment_on_server(VOLUME, served_phantom.model, remote, gate=True, keep_probabilities=True)
    with pytest.raises(BackendUnavailableError, match="leaves the air around the patient out"):
        segment_on_server(VOLUME, served_phantom.model, remote, gate=True, skip_air=False)

    with pytest.raises(BackendUnavailableError, match="does not return how far the subnets agree"):
        segment_on_server(VOLUME, served_phantom.model, remote, gate=True, subnet_agreement=True)


def test_tile_mode_counts_how_far_the_subnets_agree(served_phantom: ServedPhantom) -> None:
    counted = replace(EMBEDDED, subnet_agreement=True)
    results = []
    for options in (counted, replace(counted, server=server(served_phantom, "grpc"))):
        with open_backend(served_phantom.model, options) as backend:
            results.append(segment_volume(VOLUME, served_phantom.model.manifest, backend, options))
    assert results[0].agreement == results[1].agreement
    assert all(item.voxels_both for item in results[1].agreement)


def test_errors_of_the_pipeline_come_back_as_they_would_here(served_phantom: ServedPhantom) -> None:
    remote = server(served_phantom, "grpc", mode="volume")
    voxels = VOLUME.voxels.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    with pytest.raises(InputError, match="not finite") as caught:
        through_server(served_phantom, remote, Volume(voxels, VOLUME.geometry, "CT"))
    assert (caught.value.code, caught.value.exit_code) == ("UCSEG-E122", 3)


def test_a_server_that_holds_another_model_is_refused_before_the_first_tile(
    served_phantom: ServedPhantom, tmp_path: Path
) -> None:
    other = load_model(replace(PHANTOM, sharpness=9.0).write(tmp_path / "other"))
    remote = server(served_phantom, "grpc")
    with (
        pytest.raises(EngineMismatchError, match="holds a model of digest") as caught,
        open_backend(other, InferenceOptions(server=remote)),
    ):
        pytest.fail("another model was opened")
    assert caught.value.exit_code == 4


def run_segment(study: Path, out: Path, model: Path, *arguments: str) -> dict[str, object]:
    command = ["segment", str(study), "--out", str(out), "--model", str(model), "--json", *arguments]
    finished = CliRunner().invoke(app, command)
    assert finished.exit_code == 0, finished.output
    result: dict[str, object] = json.loads(finished.stdout)
    return result


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_segment_command_writes_the_measurements_of_the_embedded_engine(
    served_phantom: ServedPhantom, tmp_path: Path, mode: str
) -> None:
    write_ct_series(tmp_path / "study", CtPhantom())
    model = served_phantom.model.folder
    here = run_segment(tmp_path / "study", tmp_path / "here", model, "--engine", "openvino", "--precision", "f32")
    url = served_phantom.server.grpc_url
    there = run_segment(
        tmp_path / "study", tmp_path / mode, model, "--engine", "triton", "--url", url, "--triton-mode", mode
    )
    assert there["files"] == here["files"]
    assert there["engine"]["name"] == "triton-openvino"  # type: ignore[index]
    for one, other in zip(here["measurements"], there["measurements"], strict=True):  # type: ignore[call-overload]
        assert (one["name"], one["voxels"]) == (other["name"], other["voxels"])
        assert other["mean_uncertainty"] == pytest.approx(one["mean_uncertainty"], abs=1e-5, nan_ok=True)
        assert other["volume_interval_ml"] == pytest.approx(one["volume_interval_ml"], rel=1e-4)


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_results_of_a_server_can_be_verified(served_phantom: ServedPhantom, tmp_path: Path, mode: str) -> None:
    write_ct_series(tmp_path / "study", CtPhantom())
    model = served_phantom.model.folder
    remote = ("--engine", "triton", "--triton-mode", mode, "--url", served_phantom.server.grpc_url)
    run_segment(tmp_path / "study", tmp_path / "out", model, *remote)

    links = {link.name: link.state for link in verify_results(tmp_path / "out", Evidence(model))}

    assert {links[name] for name in ("results", "objects", "model", "engine")} == {"proven"}


@pytest.mark.parametrize("mode", ["tile", "volume"])
def test_studies_in_one_run_give_the_bytes_of_single_runs(
    served_phantom: ServedPhantom, tmp_path: Path, mode: str
) -> None:
    studies = [tmp_path / "in" / name for name in "abc"]
    for depth, folder in zip((10, 14, 12), studies, strict=True):
        write_ct_series(folder, CtPhantom(shape=(depth, 40, 48), study=folder.name))
    options = ["--model", str(served_phantom.model.folder), "--json", "--engine", "triton", "--triton-mode", mode]
    command = ["segment", *map(str, studies), "--out", str(tmp_path / "all"), *options]
    finished = CliRunner().invoke(app, [*command, "--url", served_phantom.server.grpc_url])
    assert finished.exit_code == 0, finished.output
    for number, folder in enumerate(studies, start=1):
        alone = tmp_path / "alone" / folder.name
        remote = ("--engine", "triton", "--triton-mode", mode, "--url", served_phantom.server.grpc_url)
        run_segment(folder, alone, served_phantom.model.folder, *remote)
        together = tmp_path / "all" / str(number)
        assert {file.name: file.read_bytes() for file in together.iterdir()} == {
            file.name: file.read_bytes() for file in alone.iterdir()
        }


def test_memory_budget_counts_what_is_here_and_not_the_server(served_phantom: ServedPhantom, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom())
    arguments = ["--engine", "triton", "--url", served_phantom.server.grpc_url, "--max-memory"]
    command = ["segment", str(tmp_path / "study"), "--model", str(served_phantom.model.folder), "--out"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "no"), *arguments, "10"])
    assert (refused.exit_code, "UCSEG-E127" in refused.stderr) == (3, True)
    assert CliRunner().invoke(app, [*command, str(tmp_path / "yes"), *arguments, "500"]).exit_code == 0
