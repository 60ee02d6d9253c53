"""Tensors in shared memory: nothing is left by either side, and a server that lost a region gets another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.served_phantom import PHANTOM, ServedPhantom
from ucseg_runtime.backends import Backend, open_backend
from ucseg_runtime.backends.triton_shared_memory import Region
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_serving.triton_process import remove_stale_regions

TILES = np.random.default_rng(0).random((4, 1, *PHANTOM.tile_shape), dtype=np.float32)


@pytest.fixture
def admin(served_phantom: ServedPhantom) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served_phantom.server.grpc_url.removeprefix("grpc://")) as client:
        yield client


def regions(admin: triton.InferenceServerClient) -> set[str]:
    return set(admin.get_system_shared_memory_status().regions)


def options(served: ServedPhantom, *, shared_memory: bool = True) -> InferenceOptions:
    address = server_address(served.server.grpc_url)
    return InferenceOptions(server=TritonServer((address,), timeout_s=60.0, shared_memory=shared_memory))


@pytest.fixture
def backend(served_phantom: ServedPhantom) -> Iterator[Backend]:
    with open_backend(served_phantom.model, options(served_phantom)) as ready:
        yield ready


def files() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob("ucseg_*") if path.name.count("_") == 2]  # noqa: S108


def test_regions_have_no_name_while_in_use_and_are_unregistered_at_the_end(
    served_phantom: ServedPhantom, admin: triton.InferenceServerClient
) -> None:
    with open_backend(served_phantom.model, options(served_phantom, shared_memory=False)) as plain:
        expected = plain.infer(TILES)
    with open_backend(served_phantom.model, options(served_phantom)) as shared:
        for _ in range(3):
            found = shared.infer(TILES)
            np.testing.assert_array_equal(found.probabilities, expected.probabilities)
            np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
        assert 1 <= len(regions(admin)) <= 2, "one per request in flight, used again"
        assert files() == []
    assert regions(admin) == set()


def test_a_server_that_lost_its_regions_gets_new_ones(backend: Backend, admin: triton.InferenceServerClient) -> None:
    expected = backend.infer(TILES)
    lost = regions(admin)
    admin.unregister_system_shared_memory()
    np.testing.assert_array_equal(backend.infer(TILES).probabilities, expected.probabilities)
    assert regions(admin)
    assert not regions(admin) & lost


def test_what_a_client_that_crashed_left_in_the_server_is_cleared_by_the_next(
    served_phantom: ServedPhantom, admin: triton.InferenceServerClient
) -> None:
    code = (
        "import os, numpy as np\n"
        "from pathlib import Path\n"
        "from ucseg_runtime.backends import open_backend\n"
        "from ucseg_runtime.config import InferenceOptions\n"
        "from ucseg_runtime.model_folder import load_model\n"
        "from ucseg_runtime.server_options import TritonServer, server_address\n"
        f"server = TritonServer((server_address({served_phantom.server.grpc_url!r}),), shared_memory=True)\n"
        f"model = load_model(Path({str(served_phantom.model.folder)!r}))\n"
        "with open_backend(model, InferenceOptions(server=server)) as backend:\n"
        f"    backend.infer(np.zeros((1, 1, *{PHANTOM.tile_shape}), dtype=np.float32))\n"
        "    os._exit(9)\n"
    )
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert crashed.returncode == 9, crashed.stderr
    assert files() == []
    left = regions(admin)
    assert left, "the server cannot know that its client is gone"
    with open_backend(served_phantom.model, options(served_phantom)) as shared:
        shared.infer(TILES)
        assert not regions(admin) & left


def test_regions_are_private_to_the_user() -> None:
    region = Region(4096)
    try:
        assert (Path("/dev/shm") / region.name).stat().st_mode & 0o777 == 0o600  # noqa: S108
    finally:
        region.unlink()
    assert files() == []


def test_regions_of_processes_that_are_gone_are_removed_and_no_others() -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    stale = Path(f"/dev/shm/ucseg_{gone.stdout.strip()}_test")  # noqa: S108
    living = Path(f"/dev/shm/ucseg_{os.getpid()}_test")  # noqa: S108
    for file in (stale, living):
        file.write_bytes(b"")
    try:
        remove_stale_regions()
        assert (stale.exists(), living.exists()) == (False, True)
    finally:
        living.unlink()
