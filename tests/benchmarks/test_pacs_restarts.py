"""An archive that is restarted while results are sent to it has all of them in the end, none twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.pacs_restarts import restarts
from tests.debian import ProgramsUnreachableError
from tests.pacs.forgotten_sockets import FORGOTTEN_SOCKETS
from tests.pacs.programs import install_pacs_programs


@pytest.mark.slow
@pytest.mark.timeout(300)
@FORGOTTEN_SOCKETS
@pytest.mark.parametrize("web", [False, True], ids=["C-STORE", "STOW-RS"])
def test_everything_arrives_once_at_an_archive_that_is_restarted(tmp_path: Path, web: bool) -> None:
    try:
        programs = install_pacs_programs()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because Orthanc cannot be fetched: {error}")

    found, _ = restarts(programs, tmp_path, 2, random.Random(1), web=web)  # noqa: S311  (moments to kill at, no secrets)

    assert (found.restarts, found.lost, found.twice) == (2, 0, 0)
    assert found.objects == 24
