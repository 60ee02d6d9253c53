"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served_phantom import ServedPhantom, serve_phantom
from ucseg_runtime.packaged_data import write_demo_study

# Threads of torch that wait for each other keep cores busy that other workers could use; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST = ("test_training_guide.py", "test_tensorrt.py", "test_parity.py", "test_listen.py", "test_bare_install.py")
"""Files that take a minute or more, wherever they lie."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked `long` to ``make test-long``, and put files in an order that keeps workers busy."""
    if os.environ.get("UCSEG_TEST_LONG") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = _in_order_for_workers(items)


def _in_order_for_workers(items: list[pytest.Item]) -> list[pytest.Item]:
    """Whole files: the longest first, then those with slow tests, then the rest.

    Workers take files in this order, so that none is left alone with a long one at the end. The files of a folder are
    spread over the others', because some folders compute and others wait for servers.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    folders: dict[Path, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append(path)
    place = {path: (index + 0.5) / len(paths) for paths in folders.values() for index, path in enumerate(paths)}

    def rank(path: Path) -> tuple[bool, bool, float, str]:
        slow = any(item.get_closest_marker("slow") for item in files[path])
        return path.name not in LONGEST, not slow, place[path], str(path)

    return [item for path in sorted(files, key=rank) for item in files[path]]


@pytest.fixture(scope="session")
def patient_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 133 DICOM files of LIDC-IDRI-0001, fetched once into the cache."""
    folder = tmp_path_factory.mktemp("patient-a")
    write_demo_study(folder)
    return folder


@pytest.fixture(scope="session")
def served_phantom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPhantom]:
    """A Triton server on loopback that serves the phantom of the contract tests on the processor."""
    with serve_phantom(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture(autouse=True)
def served_phantom_is_alive(request: pytest.FixtureRequest) -> None:
    """Where a test stopped the server, those after it say so at once instead of waiting for it."""
    if "served_phantom" in request.fixturenames:
        server = request.getfixturevalue("served_phantom").server
        assert server.process.poll() is None, str(server.triton.ended())
