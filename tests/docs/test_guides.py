"""Commands of the README and of the guides that need nothing but a study, an export and a model, in their order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from tests.batch.exports import TINY, write_export, write_model
from tests.docs.documents import PAGES
from tests.docs.ledger import PLAIN, commands_for, pages_for
from tests.guide_shell import GuideShell
from tests.phantoms import write_ct_series

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "phantom")


def describe(_: int, dataset: Dataset) -> None:
    """What the rules of the pages look at."""
    dataset.SeriesDescription = "Thorax"


@pytest.fixture
def shell(tmp_path: Path, model: Path) -> GuideShell:
    write_ct_series(tmp_path / "STUDY", TINY, edit=describe)
    write_export(tmp_path / "EXPORT", 3)
    (tmp_path / "MODEL").symlink_to(model)
    added = [
        (r"^ucseg (inspect|plan|segment|batch) (?!.*--model)", f"--model {model}"),
        (r"^ucseg (plan|segment|batch) ", "--engine openvino"),
        # Commands of a page that were not run in this order write to the same folder.
        (r"^ucseg segment .*--out (RESULTS|OUT|DIR)\b(?!.*--overwrite)", "--overwrite"),
    ]
    return GuideShell(tmp_path, added=added)


@pytest.mark.parametrize("page", pages_for(PLAIN))
def test_commands_of_a_page_succeed_one_after_the_other(
    page: str, shell: GuideShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = commands_for(PLAIN, page)
    printed = {line: shell.run(line, monkeypatch) for line in lines}

    for line in lines:
        if "--json" in line and ">" not in line:
            assert json.loads(printed[line])
        if re.match(r"ucseg (segment|batch(?!.*--dry-run))", line):
            out = shell.folder / re.findall(r"--out (\S+)", line)[0]
            records = list(out.rglob("record.json"))
            assert records, line
            assert undocumented(records[0]) == []


def undocumented(record: Path) -> list[str]:
    """Files beside a record, and fields of it, that the page on outputs does not name."""
    held = json.loads(record.read_text(encoding="utf-8"))
    fields = {*held, *held["measurements"][0]} - {"label", "name"}
    names = {path.name for path in record.parent.iterdir() if path.is_file()}
    return sorted(name for name in fields | names if f"`{name}`" not in PAGES["docs/outputs.md"])
