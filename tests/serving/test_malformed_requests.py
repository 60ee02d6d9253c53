"""Requests that no client of ours would send: each gets a clear error, and the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.served_phantom import PHANTOM, ServedPhantom
from ucseg_runtime.evidence import probabilities_from_logits

TILE = np.random.default_rng(0).random((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOXELS = np.zeros((5, 6, 7), dtype=np.int16)
TIMEOUT_S = 60.0
REFUSED = (400, 500)
"""Triton answers what its JSON reader cannot read with 500, everything else that is malformed with 400."""


@pytest.fixture
def alive(served_phantom: ServedPhantom) -> Iterator[ServedPhantom]:
    """The server; after the test it must still answer a proper request, and rightly."""
    yield served_phantom
    answer = post(served_phantom, "ucseg_tiles", {"IMAGE": ("FP32", TILE)})
    assert answer.status_code == 200, answer.text
    expected = probabilities_from_logits(PHANTOM.fused_logits(TILE), "softmax")
    np.testing.assert_allclose(tensors_of(answer)["PROBABILITIES"], expected, atol=2e-6)


def tensors_of(answer: requests.Response) -> dict[str, np.ndarray]:
    """Float32 tensors of an answer, which lie one after the other behind its JSON header."""
    offset = int(answer.headers["Inference-Header-Content-Length"])
    tensors = {}
    for tensor in json.loads(answer.content[:offset])["outputs"]:
        count = int(np.prod(tensor["shape"]))
        tensors[tensor["name"]] = np.frombuffer(answer.content, np.float32, count, offset).reshape(tensor["shape"])
        offset += 4 * count
    return tensors


def body_of(tensors: dict[str, tuple[str, np.ndarray]], **changes: Any) -> tuple[bytes, bytes]:
    """JSON header and binary part of a request; `changes` replace fields of the first tensor."""
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": kind,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, (kind, values) in tensors.items()
    ]
    inputs[0] |= changes
    header = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return json.dumps(header).encode(), b"".join(values.tobytes() for _, values in tensors.values())


def post(
    served: ServedPhantom, model: str, tensors: dict[str, tuple[str, np.ndarray]], **changes: Any
) -> requests.Response:
    header, binary = body_of(tensors, **changes)
    return requests.post(
        f"{served.server.http_url}/v2/models/{model}/infer",
        data=header + binary,
        headers={"Inference-Header-Content-Length": str(len(header))},
        timeout=TIMEOUT_S,
    )


def nan_tile() -> np.ndarray:
    tile = TILE.copy()
    tile[0, 0, 1, 2, 3] = np.nan
    return tile


TILE_CASES = [
    pytest.param({"IMAGE": ("FP32", TILE[..., :-1].copy())}, {}, "unexpected shape for input 'IMAGE'", id="too small"),
    pytest.param({"IMAGE": ("FP32", TILE[0])}, {}, "shape", id="no batch axis"),
    pytest.param({"IMAGE": ("FP32", np.repeat(TILE, 9, axis=0))}, {}, "batch-size must be <= 4", id="too many tiles"),
    pytest.param({"IMAGE": ("INT16", TILE.astype(np.int16))}, {}, "data-type is 'INT16'", id="int16"),
    pytest.param({"IMAGE": ("FP64", TILE.astype(np.float64))}, {}, "data-type is 'FP64'", id="float64"),
    pytest.param({"PICTURE": ("FP32", TILE)}, {}, "unexpected inference input 'PICTURE'", id="another name"),
    pytest.param({"IMAGE": ("FP32", nan_tile())}, {}, "UCSEG-E126 IMAGE holds values that are not finite", id="NaN"),
    pytest.param({"IMAGE": ("FP32", TILE)}, {"shape": [1, 1, 2**40, 2**40, 2**40]}, "", id="sides that overflow"),
    pytest.param({"IMAGE": ("FP32", TILE)}, {"shape": [1, 1, -8, 12, 16]}, "", id="negative side"),
    pytest.param({"IMAGE": ("FP32", TILE[:0])}, {}, "", id="no tiles"),
    pytest.param({"IMAGE": ("FP32", TILE)}, {"parameters": {"binary_data_size": 2**40}}, "", id="more bytes announced"),
    pytest.param({"IMAGE": ("FP32", TILE)}, {"parameters": {"binary_data_size": 8}}, "", id="fewer bytes announced"),
    pytest.param({"IMAGE": ("FP32", TILE)}, {"parameters": {}}, "", id="no bytes announced"),
]


@pytest.mark.parametrize(("tensors", "changes", "message"), TILE_CASES)
def test_malformed_tiles_are_refused(
    alive: ServedPhantom, tensors: dict[str, tuple[str, np.ndarray]], changes: dict[str, Any], message: str
) -> None:
    answer = post(alive, "ucseg_tiles", tensors, **changes)
    assert answer.status_code in REFUSED, answer.content[:2000]
    assert message in answer.json()["error"]


def test_tiles_that_are_not_finite_come_again_and_again(alive: ServedPhantom) -> None:
    """One of two steps that start together must not be the one that refuses: that stopped the server."""
    answers = [post(alive, "ucseg_tiles", {"IMAGE": ("FP32", nan_tile())}).status_code for _ in range(300)]
    assert set(answers) <= set(REFUSED)


def volume(**changes: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    kinds = {"VOLUME": "INT16", "VOLUME_FLOAT": "FP32", "AFFINE": "FP64"}
    tensors = {"VOLUME": VOXELS, "AFFINE": AFFINE, **changes}
    return {name: (kinds[name], values) for name, values in tensors.items() if values.dtype != bool}


LEFT_OUT = np.zeros(0, dtype=bool)

VOLUME_CASES = [
    pytest.param(volume(VOLUME=np.zeros((0, 6, 7), dtype=np.int16)), "", id="no slices"),
    pytest.param(volume(VOLUME=LEFT_OUT), "UCSEG-E126 the request has 0 of the tensors", id="no volume"),
    pytest.param(volume(VOLUME_FLOAT=VOXELS.astype(np.float32)), "UCSEG-E126 the request has 2", id="two volumes"),
    pytest.param(volume(AFFINE=LEFT_OUT), "AFFINE", id="no affine"),
    pytest.param(volume(AFFINE=np.zeros((4, 4))), "UCSEG-E118", id="singular affine"),
    pytest.param(volume(AFFINE=np.full((4, 4), np.nan)), "UCSEG-E118", id="affine that is not finite"),
    pytest.param(volume(AFFINE=AFFINE[:3].copy()), "unexpected shape for input 'AFFINE'", id="affine of three rows"),
    pytest.param(volume(AFFINE=np.diag([1e4, 1e4, 1e4, 1.0])), "UCSEG-E107", id="voxels of ten metres"),
    pytest.param(
        volume(VOLUME=LEFT_OUT, VOLUME_FLOAT=np.full((2, 3, 4), np.inf, dtype=np.float32)),
        "UCSEG-E122 VOLUME_FLOAT holds values that are not finite",
        id="infinite voxels",
    ),
]


@pytest.mark.parametrize(("tensors", "message"), VOLUME_CASES)
def test_malformed_volumes_are_refused(
    alive: ServedPhantom, tensors: dict[str, tuple[str, np.ndarray]], message: str
) -> None:
    answer = post(alive, "ucseg_volume", tensors)
    assert answer.status_code in REFUSED, answer.content[:2000]
    assert message in answer.json()["error"]
    good = post(alive, "ucseg_volume", volume())
    assert good.status_code == 200, good.text


def test_unknown_models_and_bodies_that_are_no_json_are_refused(alive: ServedPhantom) -> None:
    url = f"{alive.server.http_url}/v2/models"
    assert requests.post(f"{url}/nothing/infer", data=b"{}", timeout=TIMEOUT_S).status_code in (400, 404)
    for body in (b"", b"{", b"[]", b"\x00" * 1000, b'{"inputs": 5}', b"[" * 10_000):
        answer = requests.post(f"{url}/ucseg_tiles/infer", data=body, timeout=TIMEOUT_S)
        assert answer.status_code in REFUSED, body[:20]
        assert answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "999999999999", "x", "3"])
def test_wrong_lengths_of_the_header_are_refused(alive: ServedPhantom, length: str) -> None:
    header, binary = body_of({"IMAGE": ("FP32", TILE)})
    answer = requests.post(
        f"{alive.server.http_url}/v2/models/ucseg_tiles/infer",
        data=header + binary,
        headers={"Inference-Header-Content-Length": length},
        timeout=TIMEOUT_S,
    )
    assert answer.status_code in REFUSED
    assert answer.json()["error"]


def cut_body(header: bytes, binary: bytes) -> bytes:
    start = (
        f"POST /v2/models/ucseg_tiles/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + len(binary)}\r\n\r\n"
    )
    return start.encode() + header + binary[: len(binary) // 2]


def garbage(header: bytes, binary: bytes) -> bytes:
    return bytes(range(256)) * 64


@pytest.mark.parametrize("build", [cut_body, garbage])
def test_connections_that_end_in_the_middle_leave_the_server_alive(
    alive: ServedPhantom, build: Callable[[bytes, bytes], bytes]
) -> None:
    parts = urlsplit(alive.server.http_url)
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S) as connection:
            connection.sendall(build(*body_of({"IMAGE": ("FP32", TILE)})))


def test_grpc_tensors_with_too_few_bytes_are_refused(alive: ServedPhantom) -> None:
    request = service_pb2.ModelInferRequest(model_name="ucseg_tiles")
    tensor = request.inputs.add(name="IMAGE", datatype="FP32")
    tensor.shape.extend(TILE.shape)
    request.raw_input_contents.append(TILE.tobytes()[:100])
    with triton_grpc.InferenceServerClient(alive.server.grpc_url.removeprefix("grpc://")) as client:
        with pytest.raises(Exception, match="unexpected total byte size|byte size") as caught:
            client._client_stub.ModelInfer(request, timeout=TIMEOUT_S)
        assert "INVALID_ARGUMENT" in str(caught.value)
        tensor = triton_grpc.InferInput("IMAGE", [1, 1, 2, 2, 2], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1, 2, 2, 2), dtype=np.float32))
        with pytest.raises(InferenceServerException, match="unexpected shape for input 'IMAGE'"):
            client.infer("ucseg_tiles", [tensor], client_timeout=TIMEOUT_S)


def numbers(shape: object, data: object, **more: object) -> dict[str, Any]:
    """A request of the volume model with its voxels as numbers in JSON."""
    affine = {"name": "AFFINE", "datatype": "FP64", "shape": [4, 4], "data": AFFINE.ravel().tolist()}
    return {"inputs": [{"name": "VOLUME", "datatype": "INT16", "shape": shape, "data": data, **more}, affine]}


@pytest.mark.parametrize("shape", [[3000, 3000, 3000], [99_999] * 3, [2**62, 4], [10**300] * 100, [50_000, 50_000, 1]])
def test_numbers_in_json_that_are_fewer_than_their_shape_declares_are_refused(
    alive: ServedPhantom, shape: list[int]
) -> None:
    """Triton 2.51 would make room for them, and end."""
    url = f"{alive.server.http_url}/v2/models/ucseg_volume/infer"
    answer = requests.post(url, json=numbers(shape, []), timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert "input 'VOLUME': " in answer.json()["error"]


@pytest.mark.parametrize("shape", [[2**62, 99_999, 0], [2**32, 2**32, 1], [2**61, 4, 1], [0, 2**40, 2**40]])
def test_shapes_whose_bytes_overflow_are_refused_and_the_volume_model_lives(
    alive: ServedPhantom, shape: list[int]
) -> None:
    """The process of a Python model would end, since NumPy has no such array; over gRPC it does (docs/serving.md)."""
    empty = {"VOLUME": ("INT16", np.zeros((0, 1, 1), np.int16)), "AFFINE": ("FP64", AFFINE)}
    url = f"{alive.server.http_url}/v2/models/ucseg_volume/infer"
    as_json = requests.post(url, json=numbers(shape, []), timeout=TIMEOUT_S)
    for answer in (as_json, post(alive, "ucseg_volume", empty, shape=shape)):
        assert answer.status_code == 400, answer.text
        assert "input 'VOLUME': its shape has sides that no array has" in answer.json()["error"]
    good = post(alive, "ucseg_volume", volume())
    assert good.status_code == 200, good.text
