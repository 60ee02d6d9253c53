"""A real archive, a model that is fast, and listeners in processes of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.exports import write_model
from tests.debian import ProgramsUnreachableError
from tests.pacs.archive import TestArchive, running_archive
from tests.pacs.programs import PacsPrograms, install_pacs_programs


@pytest.fixture(scope="session")
def pacs_programs() -> PacsPrograms:
    """Fetched once into the cache; where Debian is out of reach, the reason of the skip says so."""
    try:
        return install_pacs_programs()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because Orthanc and dcmtk cannot be fetched: {error}")


@pytest.fixture(scope="session")
def archive(pacs_programs: PacsPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestArchive]:
    """Orthanc that all tests share; each has studies of its own."""
    with running_archive(pacs_programs, tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments a tiny series in a moment."""
    return write_model(tmp_path_factory.mktemp("model") / "phantom")


@pytest.fixture
def forgotten_sockets() -> Iterator[None]:
    """Those of a test are collected in it, where `FORGOTTEN_SOCKETS` holds, and not in another one."""
    yield
    gc.collect()
