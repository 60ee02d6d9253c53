"""The page of a batch: what needs a look comes first, and it is made of what lies there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.batch.exports import write_export, write_mixed_export
from tests.command_line import run
from tests.phantoms import PHI_CANARIES
from tests.report_phantom import ParsedPage
from ucseg_runtime.publish import PAGE, RECORD, THUMBNAIL
from ucseg_runtime.report.batch_report import INDEX, batch_page, is_index, write_index

HOSTILE = "</td><script>1</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Three series done, one failed, one unsuitable."""
    folder = tmp_path_factory.mktemp("canary reports")
    export = write_mixed_export(folder / "in")
    result = run("batch", export, "--out", folder / "out", "--model", model, "--report")
    assert result.exit_code == 7, result.output
    return folder / "out"


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed; times of files are kept."""
    return shutil.copytree(finished, tmp_path / "out")


def cases(page: bytes) -> list[str]:
    """Folders of the cases that have a report, in the order of the page."""
    links = [link for link in ParsedPage(page).attributes("a", "href") if link.endswith(PAGE)]
    return list(dict.fromkeys(link.removeprefix("./").removesuffix(f"/{PAGE}") for link in links))


def change_record(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change a record, which does not get younger."""
    path = folder / RECORD
    times = path.stat()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_every_case_is_listed_with_its_report_and_its_picture(finished: Path) -> None:
    content = (finished / INDEX).read_bytes()
    page = ParsedPage(content)

    records = [path.parent for path in finished.glob(f"*/*/{RECORD}")]
    assert len(records) == 3
    assert {str(folder.relative_to(finished)) for folder in records} == set(cases(content))
    assert all(
        (finished / case / PAGE).is_file() and (finished / case / THUMBNAIL).is_file() for case in cases(content)
    )
    pictures = page.attributes("img", "src")
    assert len(pictures) == 3
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert all(page.attributes("img", "alt"))
    for folder in records:
        for item in json.loads((folder / RECORD).read_text())["measurements"]:
            assert json.dumps(item["volume_ml"]) in page.attributes("data", "value")
    assert (finished / INDEX).stat().st_mode & 0o777 == 0o600


def test_failures_stand_above_the_cases_and_what_does_not_fit_below(finished: Path) -> None:
    text = ParsedPage((finished / INDEX).read_bytes()).text

    places = [text.index(word) for word in ("UCSEG-E114", "Every case with results", "UCSEG-E121")]
    assert places == sorted(places)


def test_page_tells_nothing_of_patients_and_runs_nothing(finished: Path) -> None:
    content = (finished / INDEX).read_bytes()

    assert not any(canary in content.decode().lower() for canary in PHI_CANARIES)
    assert b"default-src 'none'" in content
    assert not ParsedPage(content).scripts


def test_without_decisions_the_least_certain_comes_first(done: Path) -> None:
    folders = sorted(path.parent for path in done.glob(f"*/*/{RECORD}"))
    for folder, uncertainty in zip(folders, (0.2, None, 0.7), strict=True):
        change_record(folder, {"decision": None, "measurements": [_measurement(uncertainty)]})

    found = cases(batch_page(done))

    expected = [folders[1], folders[2], folders[0]]
    assert found == [str(folder.relative_to(done)) for folder in expected], "nothing found, uncertain, certain"


def test_decisions_come_by_outcome_and_score(done: Path) -> None:
    folders = sorted(path.parent for path in done.glob(f"*/*/{RECORD}"))
    decisions = (("accept", 0.9), ("review", 0.4), ("review", 0.6))
    for folder, (outcome, score) in zip(folders, decisions, strict=True):
        change_record(folder, {"decision": _decision(outcome, score)})

    content = batch_page(done)

    expected = [folders[2], folders[1], folders[0]]
    assert cases(content) == [str(folder.relative_to(done)) for folder in expected]
    page = ParsedPage(content)
    assert page.text.count(HOSTILE) == 3
    assert not page.scripts
    change_record(folders[0], {"decision": _decision("reject", 0.1)})
    assert cases(batch_page(done))[0] == str(folders[0].relative_to(done))


def test_tables_of_other_runs_count_unless_there_is_a_newer_result(done: Path) -> None:
    table = done / "failures-2-of-3.csv"
    case = min(done.glob(f"*/*/{RECORD}")).parent
    place = case.relative_to(done)
    table.write_text(
        "study,series,state,code,reason\n"
        f"{place.parent},{place.name},failed,UCSEG-E150,the disk was full\n"
        "other,lost,failed,UCSEG-E106,the process died\n"
    )

    after = batch_page(done)
    os.utime(table, ns=(0, 0))
    before = batch_page(done)

    assert str(place) not in cases(after), "the newer failure is what counts"
    assert "UCSEG-E150" in ParsedPage(after).text
    assert str(place) in cases(before)
    assert "UCSEG-E150" not in ParsedPage(before).text
    assert all("other/lost" in ParsedPage(page).text for page in (before, after))


def test_later_run_makes_the_page_anew(model: Path, tmp_path: Path) -> None:
    export = write_export(tmp_path / "in", 2)
    first = run("batch", export, "--out", tmp_path / "out", "--model", model, "--report", "--shard", "1/2")
    before = (tmp_path / "out" / INDEX).read_bytes() if (tmp_path / "out" / INDEX).exists() else b""
    second = run("batch", export, "--out", tmp_path / "out", "--model", model, "--report", "--shard", "2/2")

    after = (tmp_path / "out" / INDEX).read_bytes()

    assert first.exit_code == second.exit_code == 0, second.output
    assert len(cases(before)) < len(cases(after)) == 2 if before else len(cases(after)) == 2
    write_index(tmp_path / "out")
    assert (tmp_path / "out" / INDEX).read_bytes() == after
    assert [path.name for path in (tmp_path / "out").glob(".index*")] == []


def test_page_of_somebody_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    export = write_export(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / INDEX).write_text("<p>mine")

    asked = run("batch", export, "--out", tmp_path / "out", "--model", model, "--report")

    assert asked.exit_code == 6
    assert "did not write" in asked.output
    assert not is_index(tmp_path / "out" / INDEX), "so runs without --report leave it alone as well"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [INDEX], "nothing was begun"


def _measurement(uncertainty: float | None) -> dict[str, object]:
    return {"name": "liver", "label": 1, "voxels": 9, "volume_ml": 1.0, "mean_uncertainty": uncertainty}


def _decision(outcome: str, score: float) -> dict[str, object]:
    reason = {"check": "volume", "value": 1.0, "limit": 2.0, "text": HOSTILE}
    return {"outcome": outcome, "calibrated": True, "score": score, "reasons": [reason]}
