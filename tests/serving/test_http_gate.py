"""The gate in front of Triton's HTTP port: what passes, what does not, and what happens when one side breaks off."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.served_phantom import PHANTOM, ServedPhantom, serve_phantom
from tests.volume_phantom import STRAIGHT, centred_geometry, volume_of
from ucseg_runtime.evidence import probabilities_from_logits
from ucseg_serving.http_gate import http_gate
from ucseg_serving.json_inputs import MOST_BYTES
from ucseg_serving.local_server import LocalOptions, LocalServer

TIMEOUT_S = 60.0
TILE = np.random.default_rng(0).random((1, 1, *PHANTOM.tile_shape), dtype=np.float32)
TOO_FEW = {"inputs": [{"name": "IMAGE", "datatype": "FP32", "shape": [9_999] * 3, "data": []}]}
BEGINNING_OF_AN_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it"


def infer_url(served: ServedPhantom) -> str:
    return f"{served.server.http_url}/v2/models/ucseg_tiles/infer"


def tile_as_json() -> bytes:
    tensor = {"name": "IMAGE", "datatype": "FP32", "shape": list(TILE.shape), "data": TILE.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "PROBABILITIES"}]}).encode()


def probabilities_of(answer: requests.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    tensor = answer.json()["outputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def expected() -> np.ndarray:
    return probabilities_from_logits(PHANTOM.fused_logits(TILE), "softmax")


def test_numbers_pass(served_phantom: ServedPhantom) -> None:
    answer = requests.post(infer_url(served_phantom), data=tile_as_json(), timeout=TIMEOUT_S)
    np.testing.assert_allclose(probabilities_of(answer), expected(), atol=2e-6)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_pass_and_are_counted(served_phantom: ServedPhantom, coding: str) -> None:
    packed = gzip.compress if coding == "gzip" else zlib.compress
    headers = {"Content-Encoding": coding}
    url = infer_url(served_phantom)
    good = requests.post(url, data=packed(tile_as_json()), headers=headers, timeout=TIMEOUT_S)
    np.testing.assert_allclose(probabilities_of(good), expected(), atol=2e-6)
    bad = requests.post(url, data=packed(json.dumps(TOO_FEW).encode()), headers=headers, timeout=TIMEOUT_S)
    assert bad.status_code == 400
    assert "values that came: 0" in bad.json()["error"]
    damaged = requests.post(url, data=packed(tile_as_json())[5:], headers=headers, timeout=TIMEOUT_S)
    assert damaged.status_code == 400
    assert damaged.json()["error"]


def test_answers_that_a_client_wants_compressed_pass(served_phantom: ServedPhantom) -> None:
    headers = {"Accept-Encoding": "gzip"}
    answer = requests.post(infer_url(served_phantom), data=tile_as_json(), headers=headers, timeout=TIMEOUT_S)
    assert answer.headers["Content-Encoding"] == "gzip"
    np.testing.assert_allclose(probabilities_of(answer), expected(), atol=2e-6)


def test_bodies_in_pieces_pass(served_phantom: ServedPhantom) -> None:
    body = tile_as_json()
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    answer = requests.post(infer_url(served_phantom), data=pieces, timeout=TIMEOUT_S)
    np.testing.assert_allclose(probabilities_of(answer), expected(), atol=2e-6)


def test_numbers_beside_a_tensor_in_bytes_are_counted(served_phantom: ServedPhantom) -> None:
    tensor = {"name": "X", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    header = json.dumps({"inputs": [tensor, *TOO_FEW["inputs"]]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = requests.post(infer_url(served_phantom), data=header + bytes(4), headers=headers, timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert "values that came: 0" in answer.json()["error"]


@pytest.mark.parametrize("headers", [{}, {"Inference-Header-Content-Length": str(MOST_BYTES + 1)}])
def test_more_json_than_is_read_is_refused(served_phantom: ServedPhantom, headers: dict[str, str]) -> None:
    body = b'{"inputs": []' + b" " * MOST_BYTES + b"}"
    answer = requests.post(infer_url(served_phantom), data=body, headers=headers, timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert "more than 16 MiB of JSON" in answer.json()["error"]


def test_two_lengths_of_the_header_are_refused(served_phantom: ServedPhantom) -> None:
    connection = http.client.HTTPConnection(served_phantom.server.http_url.removeprefix("http://"), timeout=TIMEOUT_S)
    connection.putrequest("POST", "/v2/models/ucseg_tiles/infer")
    for name, value in (("Content-Length", "2"), *[("Inference-Header-Content-Length", length) for length in "02"]):
        connection.putheader(name, value)
    connection.endheaders(b"{}")
    answer = connection.getresponse()
    assert (answer.status, b"Inference-Header-Content-Length" in answer.read()) == (400, True)
    connection.close()


def test_a_volume_that_calls_itself_a_form_is_none(served_phantom: ServedPhantom) -> None:
    """As ``curl --data-binary`` does; Triton's HTTP library would take it apart, and end the server."""
    header = json.dumps({"inputs": []}).encode()
    answer = requests.post(
        infer_url(served_phantom),
        data=header + bytes(12_000_000),
        headers={
            "Inference-Header-Content-Length": str(len(header)),
            "Content-Type": "application/x-www-form-urlencoded",
        },
        timeout=TIMEOUT_S,
    )
    assert answer.status_code == 400
    assert alive(served_phantom)


@pytest.mark.parametrize("model", ["ucseg_tiles", "ucseg_volume"])
@pytest.mark.parametrize("way", ["generate", "generate_stream"])
def test_lists_in_lists_end_no_server(served_phantom: ServedPhantom, model: str, way: str) -> None:
    answer = requests.post(
        f"{served_phantom.server.http_url}/v2/models/{model}/{way}",
        data=b"[" * 1_000_000,
        headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/json"},
        timeout=TIMEOUT_S,
    )
    assert (answer.status_code, answer.json()) == (400, {"error": "the request cannot be read as JSON"})
    assert alive(served_phantom)


def alive(served: ServedPhantom) -> bool:
    return requests.get(f"{served.server.http_url}/v2/health/ready", timeout=TIMEOUT_S).status_code == 200


@pytest.mark.parametrize("codings", [["br"], ["GZIP"], ["x-gzip"], ["identity", "gzip"], ["gzip", "gzip"]])
def test_other_codings_than_those_of_triton_are_refused(served_phantom: ServedPhantom, codings: list[str]) -> None:
    body = gzip.compress(json.dumps(TOO_FEW).encode())
    headers = [("Host", "x"), ("Content-Length", str(len(body))), *(("Content-Encoding", coding) for coding in codings)]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    answer = answer_to(served_phantom, f"POST /v2/models/ucseg_tiles/infer HTTP/1.1\r\n{head}\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Encoding is not one of gzip, deflate, identity" in answer


def test_a_body_that_unpacks_to_more_than_triton_counts_is_given_up(
    served_phantom: ServedPhantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucseg_serving.http_gate._MOST_BODY_BYTES", 1_000_000)
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "2"}
    body = gzip.compress(b"{}" + bytes(50_000_000))
    answer = requests.post(infer_url(served_phantom), data=body, headers=headers, timeout=TIMEOUT_S)
    assert answer.status_code in (400, 502)
    announced = requests.post(infer_url(served_phantom), data=bytes(1_000_001), timeout=TIMEOUT_S)
    assert (announced.status_code, "more than 1000000 bytes" in announced.text) == (400, True)
    assert alive(served_phantom)


def test_a_client_that_asks_whether_to_go_on_is_told(served_phantom: ServedPhantom) -> None:
    head = b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert answer_to(served_phantom, head).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_other_methods_than_those_of_the_protocol_are_refused(served_phantom: ServedPhantom) -> None:
    for method in ("HEAD", "PUT", "DELETE", "OPTIONS"):
        answer = requests.request(method, f"{served_phantom.server.http_url}/v2/health/ready", timeout=TIMEOUT_S)
        assert answer.status_code == 405, method


def answer_to(served: ServedPhantom, request_bytes: bytes) -> bytes:
    """The first bytes that come back."""
    host, port = served.server.http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(request_bytes)
        received = connection.recv(10_000)
        while received.endswith(b"\r\n\r\n") and not received.startswith(b"HTTP/1.1 100"):
            received += connection.recv(10_000)
        return received


def test_a_gate_closes_soon_though_a_client_has_sent_half_a_body(served_phantom: ServedPhantom) -> None:
    half = b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        with http_gate(listener, served_phantom.server.http_url) as gate:
            gate.open()
            client.connect(listener.getsockname())
            client.sendall(half)
            time.sleep(0.5)
            closed_at = time.monotonic()
        assert time.monotonic() - closed_at < 20.0


def post_volume(served: ServedPhantom) -> requests.Response:
    """A volume of 560 tiles."""
    geometry = centred_geometry((20, 120, 140), (2.0, 1.5, 1.2), STRAIGHT)
    voxels = volume_of(geometry).voxels.astype(np.int16).tobytes()
    affine = geometry.affine.astype(np.float64).tobytes()
    tensors = [("VOLUME", "INT16", list(geometry.shape), voxels), ("AFFINE", "FP64", [4, 4], affine)]
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(values)}}
        for name, kind, shape, values in tensors
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return requests.post(
        f"{served.server.http_url}/v2/models/ucseg_volume/infer",
        data=header + voxels + affine,
        headers={"Inference-Header-Content-Length": str(len(header))},
        timeout=TIMEOUT_S,
    )


def tiles_done(server: LocalServer) -> int:
    text = requests.get(server.metrics_url, timeout=TIMEOUT_S).text
    (line,) = (line for line in text.splitlines() if line.startswith('nv_inference_count{model="ucseg_merged"'))
    return int(line.split()[-1])


def test_a_server_that_is_used_over_http_ends_soon_and_finishes_what_is_in_work(tmp_path: Path) -> None:
    """Triton waits for connections that are open, as those of a client that may ask again."""
    with ExitStack() as stack, requests.Session() as client, ThreadPoolExecutor(2) as threads:
        served = stack.enter_context(serve_phantom(tmp_path, local=LocalOptions()))
        url = f"{served.server.http_url}/v2/health/ready"
        assert client.get(url, timeout=TIMEOUT_S).status_code == 200
        warmed_up = tiles_done(served.server)
        in_work = threads.submit(post_volume, served)
        while tiles_done(served.server) == warmed_up:
            assert not in_work.done()
            time.sleep(0.1)
        answers: set[str] = set()
        ended = threading.Event()

        def ask_until_it_has_ended() -> None:
            with suppress(requests.ConnectionError):
                while not ended.wait(0.05):
                    answers.add(client.get(url, timeout=TIMEOUT_S).text)

        asking = threads.submit(ask_until_it_has_ended)
        started = time.monotonic()
        stack.close()
        assert time.monotonic() - started < LocalOptions().stop_timeout_s - 5.0
        ended.set()
        asking.result()
        assert in_work.result().status_code == 200
    assert '{"error": "the server behind this port starts, or stops"}' in answers


@contextmanager
def gate_before(behind: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """Host and port of a gate before a server that does with one connection what the test wants."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                behind(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with http_gate(listener, f"http://127.0.0.1:{server.getsockname()[1]}") as gate:
            gate.open()
            yield listener.getsockname()
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def test_half_an_answer_does_not_look_like_a_whole_one() -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(BEGINNING_OF_AN_ANSWER)

    with gate_before(break_off) as (host, port):
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.request("GET", "/v2")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            connection.getresponse().read()
        connection.close()


def test_a_server_that_breaks_off_before_its_answer_is_a_bad_gateway() -> None:
    with gate_before(lambda connection: connection.recv(10_000)) as (host, port):
        answer = requests.post(f"http://{host}:{port}/v2", data=b"{}", timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()) == (502, {"error": "the server behind this port does not answer"})


def test_a_request_whose_client_goes_away_ends_behind_the_gate(caplog: pytest.LogCaptureFixture) -> None:
    arrived = threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        assert connection.recv(10_000)
        arrived.set()
        assert connection.recv(10_000) == b""

    with gate_before(wait_for_the_end) as address, socket.create_connection(address, timeout=TIMEOUT_S) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert arrived.wait(TIMEOUT_S)
        client.close()
    assert caplog.text == ""


@pytest.mark.parametrize(
    "request_bytes",
    [
        bytes(range(1, 256)) * 64,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: DOE\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nDOE\r\n{}",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nDOE",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nDOE",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"DOE" * 30_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_nothing_of_it_is_logged(
    served_phantom: ServedPhantom, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = served_phantom.server.http_url.removeprefix("http://").split(":")
    with caplog.at_level(logging.DEBUG), socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(10_000).split(b"\r\n")[0].endswith(b"400 Bad Request")
    assert "DOE" not in caplog.text
    assert "http_gate" not in caplog.text
    assert alive(served_phantom)


def test_a_defect_is_told_by_type_and_place_alone(
    served_phantom: ServedPhantom, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(text: bytes) -> None:
        raise ZeroDivisionError(text)

    monkeypatch.setattr("ucseg_serving.http_gate.check_json_inputs", defect)
    answer = requests.post(infer_url(served_phantom), data=b'{"x": "DOE"}', timeout=TIMEOUT_S)
    assert answer.status_code == 500
    assert "a request over HTTP could not be passed on: ZeroDivisionError at test_http_gate.py:" in caplog.text
    assert "DOE" not in caplog.text + answer.text
    assert "Traceback" not in caplog.text
