"""The commands of the PACS guide, run as they stand, in their order, with the ports of the test's archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.batch.exports import TINY
from tests.docs.documents import commands
from tests.guide_shell import GuideShell
from tests.pacs.archive import TestArchive
from tests.pacs.guide import LISTENING, guide_shell
from tests.phantoms import write_ct_series
from tests.processes import LOOPBACK

COMMANDS = commands("docs/pacs.md")
LISTEN = [line for line in COMMANDS if "pacs listen" in line]
CURL = [line for line in COMMANDS if line.startswith("curl ")]
OTHERS = [line for line in COMMANDS if line not in (*LISTEN, *CURL)]
STUDY = replace(TINY, study="of the guide")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def shell(archive: TestArchive, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> GuideShell:
    folder = tmp_path_factory.mktemp("guide")
    archive.pacs.store(write_ct_series(folder / "series", STUDY))
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for name in ("callers.pem", "ca.pem"):
        authority.cert_pem.write_to_path(folder / name)
    (folder / "token").write_text("token of the guide")
    return guide_shell(folder, archive, tiny_model, STUDY)


def test_every_kind_of_command_stands_in_the_guide() -> None:
    assert len(LISTEN) == 5
    assert [line.rpartition("/")[2] for line in CURL] == ["readyz", "healthz", "metrics"]
    words = {" ".join(line.split()[1:3]) if "pacs" in line.split()[1] else line.split()[1] for line in OTHERS}
    assert words == {"segment", "pacs send", "pacs query", "pacs fetch", "batch"}


@pytest.mark.parametrize("line", LISTEN, ids=["plain", "options", "TLS", "Triton", "reports"])
def test_listener_of_the_guide_starts_answers_and_stops(
    shell: GuideShell, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shell.running(line, LISTENING):
        for page in CURL if "--spool " in line else CURL[:1]:
            assert shell.run(page, monkeypatch)


def test_single_commands_of_the_guide_do_what_they_say(
    shell: GuideShell, archive: TestArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = [shell.run(line, monkeypatch) for line in OTHERS]

    assert printed[1:3] == ["3 of 3 objects stored\n"] * 2
    assert archive.modalities(STUDY.study_uid) == {"CT": 6, "SEG": 1, "SR": 1, "OT": 1}
    assert STUDY.series_uid in printed[4], "of the query by DICOMweb, which prints JSON"
    assert len(list((shell.folder / "found" / "1").glob("*.dcm"))) == 6
    assert len(list((shell.folder / "fetched").glob("*.dcm"))) == 9, "the series, and then the study with its results"
    assert len(list((shell.folder / "results-of-batch").rglob("record.json"))) == 1
