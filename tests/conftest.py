"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served_phantom import ServedPhantom, serve_phantom
from ucseg_runtime.packaged_data import write_demo_study
from ucseg_serving.local_server import server_ended


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked `long` to ``make test-long``."""
    if os.environ.get("UCSEG_TEST_LONG") == "1":
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


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
        assert server.process.poll() is None, str(server_ended(server))
