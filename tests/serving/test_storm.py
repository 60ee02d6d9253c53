"""More requests than the server can take, from clients that do not hold back: refused or answered rightly."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.served_phantom import PHANTOM, ServedPhantom
from ucseg_runtime.evidence import probabilities_from_logits

CLIENTS = 64
REQUESTS = 1280
PATIENCE_US = 20_000


def test_a_foreign_storm_is_refused_with_unavailable_and_the_server_lives(served_phantom: ServedPhantom) -> None:
    tiles = np.random.default_rng(0).random((4, 1, *PHANTOM.tile_shape), dtype=np.float32)
    expected = probabilities_from_logits(PHANTOM.fused_logits(tiles), "softmax")
    tensor = triton.InferInput("IMAGE", list(tiles.shape), "FP32")
    tensor.set_data_from_numpy(tiles)

    with triton.InferenceServerClient(served_phantom.server.grpc_url.removeprefix("grpc://")) as client:

        def request(patience_us: int) -> str:
            try:
                answer = client.infer("ucseg_tiles", [tensor], timeout=patience_us, client_timeout=60.0)
            except InferenceServerException as error:
                return str(error.status())
            right = np.allclose(answer.as_numpy("PROBABILITIES"), expected, atol=2e-6)
            return "right" if right else "wrong"

        with ThreadPoolExecutor(CLIENTS) as pool:
            outcomes = Counter(pool.map(request, [PATIENCE_US] * REQUESTS))
        assert set(outcomes) == {"right", "StatusCode.UNAVAILABLE"}, outcomes
        assert request(60_000_000) == "right"
    assert served_phantom.server.process.poll() is None
