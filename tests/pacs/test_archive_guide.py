"""The commands of the guide to an archive, in their order: an export, a PACS by hand, a listener."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batch.exports import TINY, write_export
from tests.docs.documents import commands
from tests.guide_shell import GuideShell
from tests.pacs.archive import TestArchive
from tests.pacs.guide import LISTENING, guide_shell
from tests.phantoms import write_ct_series

COMMANDS = commands("docs/guide-archive.md")
EXPORT = [line for line in COMMANDS if "RESULTS" in line]
LISTEN = COMMANDS.index(next(line for line in COMMANDS if "pacs listen" in line))
BY_HAND = COMMANDS[len(EXPORT) : LISTEN]
WATCH = COMMANDS[LISTEN + 1 :]
STUDY = replace(TINY, study="of the guide to an archive")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def shell(archive: TestArchive, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> GuideShell:
    folder = tmp_path_factory.mktemp("guide")
    return guide_shell(folder, archive, tiny_model, STUDY)


def test_export_of_the_guide_is_segmented_and_told_in_tables(
    shell: GuideShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(shell.folder / "EXPORT", 3)

    printed = [shell.run(line, monkeypatch) for line in EXPORT]

    assert len(list((shell.folder / "RESULTS").rglob("record.json"))) == 3
    assert len(printed[-1].splitlines()) == 1 + 3 + 1, "two headers, and a row for each series"


def test_study_of_the_guide_comes_back_to_the_archive_with_its_results(
    shell: GuideShell, archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.pacs.store(write_ct_series(shell.folder / "stored", STUDY))
    shutil.rmtree(shell.folder / "stored")

    printed = [shell.run(line, monkeypatch) for line in BY_HAND]

    assert STUDY.series_uid in json.dumps(json.loads(printed[0]))
    assert archive.modalities(STUDY.study_uid) == {"CT": 6, "SEG": 1, "SR": 1, "OT": 1}


def test_listener_of_the_guide_starts_answers_and_stops(shell: GuideShell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(WATCH) == 1
    with shell.running(COMMANDS[LISTEN], LISTENING):
        assert shell.run(WATCH[0], monkeypatch)
