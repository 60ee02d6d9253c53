"""Orthanc, OHIF and a browser for the tests that look at results as a radiologist would."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.debian import ProgramsUnreachableError
from tests.viewer.programs import BrowserPrograms, ViewerPrograms, install_browser, install_programs
from tests.viewer.viewing import Viewer, open_viewer

collect_ignore = [] if os.environ.get("UCSEG_TEST_LONG") else ["test_ohif_in_full.py"]


@pytest.fixture(scope="session")
def viewer_programs() -> ViewerPrograms:
    """Fetched once into the cache; where Debian or npm is out of reach, the reason of the skip says so."""
    try:
        return install_programs()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because the viewer cannot be fetched: {error}")


@pytest.fixture(scope="session")
def browser_programs() -> BrowserPrograms:
    """The browser alone."""
    try:
        return install_browser()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because the browser cannot be fetched: {error}")


@pytest.fixture(scope="module")
def viewer(viewer_programs: ViewerPrograms) -> Iterator[Viewer]:
    """Runs for one module only, because no other test could use asyncio meanwhile."""
    with open_viewer(viewer_programs) as opened:
        yield opened
