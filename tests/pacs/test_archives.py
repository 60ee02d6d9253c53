"""Finding, fetching and storing at a real archive, by both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from tests.batch.exports import TINY
from tests.command_line import run
from tests.pacs.archive import TestArchive
from tests.pacs.forgotten_sockets import FORGOTTEN_SOCKETS
from tests.phantoms import PATIENT_ID, PHI_CANARIES, CtPhantom, write_ct_series
from tests.processes import LOOPBACK, free_port
from ucseg_runtime.pacs.addresses import archive_address
from ucseg_runtime.pacs.archives import Connection, archive_at
from ucseg_runtime.pacs.listener import count_at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("forgotten_sockets"),
    FORGOTTEN_SOCKETS,
]

WAYS = ("dimse", "web")


def answer_of(*arguments: object) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sent(way: str, archive: TestArchive, tmp_path_factory: pytest.TempPathFactory) -> CtPhantom:
    """A study that `ucseg pacs send` has sent by this way."""
    phantom = replace(TINY, study=f"sent by {way}")
    folder = tmp_path_factory.mktemp("canary")
    write_ct_series(folder, phantom)
    report = answer_of("pacs", "send", folder, "--to", getattr(archive, way))
    assert report == {"stored": 6, "refused": [], "not_sent": 0, "unusable": []}
    return phantom


def test_sent_objects_are_there_once_however_often_they_are_sent(
    way: str, sent: CtPhantom, archive: TestArchive, tmp_path: Path
) -> None:
    write_ct_series(tmp_path, sent)
    answer_of("pacs", "send", tmp_path, "--to", getattr(archive, way))

    assert archive.modalities(sent.study_uid) == {"CT": 6}


def test_series_is_found_by_what_it_is_without_saying_who_it_is(
    way: str, sent: CtPhantom, archive: TestArchive
) -> None:
    result = run("pacs", "query", getattr(archive, way), "--modality", "CT", "--date", "20200101-20200103", "--json")

    assert result.exit_code == 0, result.output
    series = {item["series_uid"]: item for item in json.loads(result.stdout)["series"]}
    assert series[sent.series_uid] == {
        "study_uid": sent.study_uid,
        "series_uid": sent.series_uid,
        "modality": "CT",
        "study_date": "20200102",
        "instances": 6,
    }
    assert not any(word in result.output.lower() for word in (*PHI_CANARIES, PATIENT_ID.lower()))


@pytest.mark.parametrize(("option", "value"), [("--modality", "MR"), ("--date", "20191231"), ("--study", "1.2.3")])
def test_what_does_not_fit_is_not_found(
    way: str, sent: CtPhantom, archive: TestArchive, option: str, value: str
) -> None:
    assert answer_of("pacs", "query", getattr(archive, way), option, value) == {"series": []}


@pytest.mark.parametrize("with_series", [True, False])
def test_fetched_instances_are_those_that_were_sent(
    way: str, sent: CtPhantom, archive: TestArchive, tmp_path: Path, with_series: bool
) -> None:
    which = ["--study", sent.study_uid, *(["--series", sent.series_uid] if with_series else [])]
    for _ in range(2):
        report = answer_of("pacs", "fetch", getattr(archive, way), *which, "--out", tmp_path / "fetched")
        assert report["instances"] == 6

    fetched = [pydicom.dcmread(path) for path in (tmp_path / "fetched").iterdir()]
    assert len(fetched) == 6, "fetching again writes the same files"
    originals = {item.SOPInstanceUID: item for item in sent.datasets()}
    for item in fetched:
        assert item.PixelData == originals[item.SOPInstanceUID].PixelData
        assert item.PatientID == PATIENT_ID
    assert (tmp_path / "fetched").stat().st_mode & 0o077 == 0


def test_query_fetches_what_it_finds(way: str, sent: CtPhantom, archive: TestArchive, tmp_path: Path) -> None:
    answer_of("pacs", "query", getattr(archive, way), "--study", sent.study_uid, "--get", tmp_path / "found")

    assert len(list((tmp_path / "found" / "1").iterdir())) == 6


def test_study_that_is_not_there_is_an_input_error(way: str, archive: TestArchive, tmp_path: Path) -> None:
    result = run("pacs", "fetch", getattr(archive, way), "--study", "1.2.3", "--out", tmp_path / "out", "--json")

    assert result.exit_code in (3, 5), result.output
    assert json.loads(result.stdout)["error"]["code"] in ("UCSEG-E101", "UCSEG-E171")


def test_archive_that_is_not_there_is_told_apart(way: str, tmp_path: Path) -> None:
    write_ct_series(tmp_path, TINY)
    port = free_port()
    address = f"ANY@{LOOPBACK}:{port}" if way == "dimse" else f"dicomweb+http://{LOOPBACK}:{port}/dicom-web"

    for arguments in (("send", tmp_path, "--to", address), ("query", address)):
        result = run("pacs", *arguments)
        assert result.exit_code == 5, result.output
        assert result.stderr.startswith(f"UCSEG-E170 ArchiveUnreachableError: {address} cannot be reached")


def test_archive_is_asked_how_many_images_a_series_has_and_left_alone_when_it_is_gone(
    way: str, sent: CtPhantom, archive: TestArchive
) -> None:
    told: list[str] = []
    here, nowhere = getattr(archive, way), f"A@{LOOPBACK}:{free_port()}"
    count, lost = (
        count_at(lambda text=text: archive_at(archive_address(text), Connection()), told.append, lambda: 0.0)  # type: ignore[misc]
        for text in (here, nowhere)
    )

    assert count(sent.study_uid, sent.series_uid) == 6
    assert count(sent.study_uid, "1.2.3") is None
    assert told == []
    assert [lost(sent.study_uid, sent.series_uid) for _ in range(2)] == [None, None]
    assert len(told) == 1, "it is not asked again at once"
    assert "count as complete by time alone" in told[0]


def test_damaged_files_are_named_and_the_others_sent(archive: TestArchive, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path / "canary", replace(TINY, study="with damage"))
    files[2].write_bytes(files[2].read_bytes()[:132])  # what says that it is DICOM, and nothing else
    (tmp_path / "canary" / "canary notes.txt").write_text("nothing")

    result = run("pacs", "send", tmp_path / "canary", "--to", archive.dimse, "--json")

    assert result.exit_code == 7, result.output
    report = json.loads(result.stdout)
    assert (report["stored"], report["refused"]) == (5, [])
    assert len(report["unusable"]) == 1
    assert "UCSEG-E103" in report["unusable"][0]
    assert report["unusable"][0] in result.stderr
    assert "canary" not in result.output


def test_wrong_title_is_named(archive: TestArchive, tmp_path: Path) -> None:
    write_ct_series(tmp_path, TINY)
    result = run("pacs", "send", tmp_path, "--to", f"WRONG@{LOOPBACK}:{archive.pacs.dicom_port}")

    assert result.exit_code == 5
    assert "UCSEG-E171" in result.stderr
    assert "is not called WRONG" in result.stderr


def test_wrong_root_of_the_url_is_told(archive: TestArchive) -> None:
    result = run("pacs", "query", f"dicomweb+http://{LOOPBACK}:{archive.pacs.port}/nowhere")

    assert result.exit_code == 5
    assert "UCSEG-E171" in result.stderr


def test_series_of_an_archive_is_segmented_like_one_of_a_folder(
    archive: TestArchive, tiny_model: Path, tmp_path: Path
) -> None:
    phantom = replace(TINY, study="segmented from the web")
    write_ct_series(tmp_path / "study", phantom)
    run("pacs", "send", tmp_path / "study", "--to", archive.web)
    url = f"{archive.web}/studies/{phantom.study_uid}/series/{phantom.series_uid}"

    for source, out in ((url, "remote"), (tmp_path / "study", "local")):
        answer_of("segment", source, "--out", tmp_path / out, "--model", tiny_model, "--engine", "openvino")

    for name in ("segmentation.dcm", "uncertainty.dcm", "report.dcm"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_url_among_several_inputs_is_a_usage_error(archive: TestArchive, tmp_path: Path) -> None:
    result = run("segment", f"{archive.web}/studies/1.2/series/3.4", tmp_path, "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert "only input" in result.stderr.replace("\n", " ").replace("│", "")
