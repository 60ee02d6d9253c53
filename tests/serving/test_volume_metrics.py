"""What the volume model tells Prometheus: outcomes, empty masks, uncertainty, and how far the subnets agree."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton

from tests.served_phantom import PHANTOM, ServedPhantom, serve_phantom
from tests.volume_phantom import STRAIGHT, centred_geometry, volume_of
from ucseg_runtime.backends import open_backend
from ucseg_runtime.backends.triton_volume import segment_on_server
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.decision import Outcome, decide
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import Segmentation, measure, ready_to_write
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_runtime.volume import Volume
from ucseg_serving.health import canary
from ucseg_serving.serving_options import ServingOptions

VOLUME = volume_of(centred_geometry((20, 60, 70), (2.0, 1.5, 1.2), STRAIGHT))
AIR = Volume(
    np.random.default_rng(0).integers(-1000, -950, VOLUME.geometry.shape, dtype=np.int16), VOLUME.geometry, "CT"
)
WAIT_S = 60.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A server whose volume model asks for the logits, with subnets that differ."""
    options = ServingOptions(volume_memory_gb=2.0, volume_over="ucseg_logits")
    ranges = {"cases": 5, "figures": {"extent_left_mm": (30.0, 200.0), "found": (1.0, 2.0)}}
    differing = replace(PHANTOM, shift_b=0.15, changes={"training_ranges": ranges})
    with serve_phantom(tmp_path_factory.mktemp("served"), options, phantom=differing) as ready:
        yield ready


def metrics(served: ServedPhantom) -> dict[str, float]:
    """Every line of the metrics: name with labels to value."""
    text = requests.get(served.server.metrics_url, timeout=10.0).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def ours(served: ServedPhantom) -> dict[str, float]:
    return {name: value for name, value in metrics(served).items() if name.startswith("ucseg_")}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Counters that are higher than before, by how much."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value > before.get(name, 0.0)}


def tiles_of(served: ServedPhantom) -> float:
    """Tiles that were computed, counted at the first stage."""
    return metrics(served)['nv_inference_count{model="ucseg_subnet_a",version="1"}']


def on_server(served: ServedPhantom, volume: Volume) -> Segmentation:
    """What the server finds; it has counted the volume then, which it does after it has answered."""
    before = volumes(served)
    remote = TritonServer((server_address(served.server.grpc_url),), "volume", timeout_s=WAIT_S)
    found = segment_on_server(volume, served.model, remote, gate=True)[0]
    until(lambda: volumes(served) > before)
    return found


def volumes(served: ServedPhantom) -> float:
    return sum(value for name, value in ours(served).items() if name.startswith("ucseg_volumes_total"))


def test_nothing_is_said_of_subnets_before_a_volume_came(served: ServedPhantom) -> None:
    assert not any("dice" in name for name in ours(served)), "a gauge that was never set says 0"


def test_dice_between_the_subnets_is_that_of_the_embedded_engine(served: ServedPhantom) -> None:
    options = InferenceOptions(engine="openvino", precision="f32", subnet_agreement=True)
    with open_backend(served.model, options) as backend:
        expected = segment_volume(VOLUME, served.model.manifest, backend, options)
    assert all(0.1 < item.dice < 0.99 for item in expected.agreement), "the phantom's subnets must differ"
    before = ours(served)
    found = on_server(served, VOLUME)
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    after = ours(served)
    for item in expected.agreement:
        assert after[f'ucseg_between_subnet_dice{{segment="{item.name}"}}'] == pytest.approx(item.dice, abs=1e-9)
    labelled = expected.uncertainty[expected.label_map > 0]
    for share in (0.5, 0.95):
        told = after[f'ucseg_uncertainty{{quantile="{share}"}}']
        assert told == pytest.approx(np.quantile(labelled, share), abs=1e-6)
    assert grown(before, after)['ucseg_volumes_total{outcome="segmented"}'] == 1


@pytest.mark.parametrize("volume", [VOLUME, AIR], ids=["phantom", "air"])
def test_decisions_are_those_that_the_embedded_engine_makes(served: ServedPhantom, volume: Volume) -> None:
    before = ours(served)
    on_server(served, volume)
    counted = {name for name in grown(before, ours(served)) if "decisions" in name}
    assert counted == {f'ucseg_decisions_total{{outcome="{decided(served, volume)}"}}'}


def test_air_and_a_phantom_are_decided_upon_differently(served: ServedPhantom) -> None:
    assert (decided(served, VOLUME), decided(served, AIR)) == ("accept", "review")


def test_an_empty_mask_is_counted_and_leaves_the_last_figures(served: ServedPhantom) -> None:
    on_server(served, VOLUME)
    before = ours(served)
    on_server(served, AIR)
    assert grown(before, ours(served)) == {
        'ucseg_volumes_total{outcome="segmented"}': 1,
        "ucseg_empty_masks_total": 1,
        'ucseg_decisions_total{outcome="review"}': 1,
    }


def test_canaries_are_no_patients(served: ServedPhantom) -> None:
    before = ours(served)
    on_server(served, canary(served.model.manifest))
    assert grown(before, ours(served)) == {'ucseg_volumes_total{outcome="canary"}': 1}


def decided(served: ServedPhantom, volume: Volume) -> Outcome:
    """What the embedded engine decides upon a volume."""
    options = InferenceOptions(engine="openvino", precision="f32", subnet_agreement=True)
    with open_backend(served.model, options) as backend:
        result = segment_volume(volume, served.model.manifest, backend, options)
    return decide(volume, ready_to_write(result), measure(result), served.model).outcome


def test_no_label_tells_anything_but_outcome_segment_and_quantile(served: ServedPhantom) -> None:
    on_server(served, VOLUME)
    labels = {label for name in ours(served) for label in re.findall(r'(\w+)="', name)}
    assert labels == {"outcome", "segment", "quantile"}
    segments = {found for name in ours(served) for found in re.findall(r'segment="([^"]*)"', name)}
    assert segments == {item.name for item in served.model.manifest.classes}


def test_a_volume_that_nobody_waits_for_any_more_is_given_up(served: ServedPhantom) -> None:
    """gRPC tells the server that a client has cancelled; the next tiles are not sent."""
    shape = (80, 160, 160)
    voxels = np.full(shape, 60, dtype=np.int16)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]
    inputs = [triton.InferInput("VOLUME", list(shape), "INT16"), triton.InferInput("AFFINE", [4, 4], "FP64")]
    inputs[0].set_data_from_numpy(voxels)
    inputs[1].set_data_from_numpy(affine)
    before, tiles_before = ours(served), tiles_of(served)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with triton.InferenceServerClient(served.server.grpc_url.removeprefix("grpc://")) as client:
        call = client.async_infer("ucseg_volume", inputs, callback=lambda result, error: answers.put((result, error)))
        until(lambda: tiles_of(served) >= tiles_before + 20)
        call.cancel()
        result, error = answers.get(timeout=WAIT_S)
        assert result is None
        assert "CANCELLED" in str(error.status())
        until(lambda: grown(before, ours(served)) == {'ucseg_volumes_total{outcome="cancelled"}': 1})
    stopped_at = tiles_of(served)
    assert stopped_at - tiles_before < 2000, "the volume has about 8000 tiles"
    time.sleep(2.0)
    assert tiles_of(served) == stopped_at
    assert on_server(served, VOLUME).label_map.any(), "the server goes on"


def until(reached: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
