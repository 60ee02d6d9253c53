"""The listener in a process of its own, with a real archive behind it: everything arrives, once."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from pydicom.dataset import FileDataset
from typer.testing import CliRunner, Result

from tests.batch.exports import TINY
from tests.orthanc import Pacs
from tests.pacs.archive import RESULTS, TestArchive, running_archive
from tests.pacs.listening import Listening, listening
from tests.pacs.programs import PacsPrograms
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from tests.processes import LOOPBACK, free_port
from ucseg_runtime.cli.app import app
from ucseg_runtime.decision import OUTCOMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def study(folder: Path, name: str, **changes: object) -> tuple[CtPhantom, list[Path]]:
    phantom = replace(TINY, study=name, **changes)  # type: ignore[arg-type]
    return phantom, write_ct_series(folder / name, phantom)


def options(archive: str, model: Path, *more: object) -> list[object]:
    return ["--forward", archive, "--model", model, "--engine", "openvino", "--quiet-time", 0.5, *more]


def page(listener: Listening, name: str) -> requests.Response:
    return requests.get(f"http://{LOOPBACK}:{listener.monitor_port}/{name}", timeout=10.0)


def wait_until_empty(listener: Listening, seconds: float = 30.0) -> None:
    """Until nothing is left to be done."""
    deadline = time.monotonic() + seconds
    while any(any((listener.spool / stage).iterdir()) for stage in ("arriving", "ready", "segmented", "outbox")):
        assert time.monotonic() < deadline, listener.said
        time.sleep(0.1)


def assert_once(archive: TestArchive, *studies: CtPhantom) -> None:
    uids = Counter(archive.instance_uids())
    assert set(uids.values()) == {1}
    for phantom in studies:
        assert archive.modalities(phantom.study_uid) == RESULTS


@pytest.mark.parametrize("way", ["dimse", "web"])
def test_series_that_is_sent_comes_back_as_results_and_nothing_is_left(
    way: str, archive: TestArchive, pacs_programs: PacsPrograms, tiny_model: Path, tmp_path: Path
) -> None:
    phantom, files = study(tmp_path, f"canary by {way}")
    label_maps = ("--seg-type", "labelmap")
    with listening(tmp_path / "listener", *options(getattr(archive, way), tiny_model, *label_maps)) as listener:
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        archive.wait_for(phantom.study_uid, RESULTS)
        wait_until_empty(listener)

        metrics = page(listener, "metrics").text
        assert page(listener, "healthz").status_code == page(listener, "readyz").status_code == 200
        said = listener.said
    assert archive.modalities(phantom.study_uid) == RESULTS
    assert archive.seg_types(phantom.study_uid) == ["LABELMAP" if way == "web" else "BINARY"], (
        "by C-STORE it refuses them"
    )
    assert ("segmentations are written as binary" in said) == (way == "dimse")
    for line in (
        'ucseg_pacs_instances_total{outcome="stored"} 6.0',
        'ucseg_pacs_series_total{outcome="segmented"} 1.0',
        "ucseg_pacs_objects_sent_total 3.0",
        "ucseg_pacs_deliveries_waiting 0.0",
        "ucseg_pacs_archive_reachable 1.0",
    ):
        assert line in metrics
    decided = [outcome for outcome in OUTCOMES if f'ucseg_pacs_decisions_total{{outcome="{outcome}"}} 1.0' in metrics]
    assert len(decided) == 1
    assert f": segmented, {decided[0]}" in said
    assert [path.name for path in (listener.spool / "results").iterdir()] == [".ucseg-batch"]
    assert not any(word in (said + metrics).lower() for word in PHI_CANARIES)
    assert phantom.series_uid not in said + metrics


@pytest.fixture(scope="module")
def shared(archive: TestArchive, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """One listener for all tests that do it no harm."""
    allowed = ("--allow-aet", "SCANNER", "--allow-aet", "UCSEG", "--allow-address", "127.0.0.0/8")
    with listening(tmp_path_factory.mktemp("shared"), *options(archive.dimse, tiny_model, *allowed)) as listener:
        yield listener


def test_wrong_title_of_either_side_is_rejected(shared: Listening, pacs_programs: PacsPrograms, tmp_path: Path) -> None:
    _, files = study(tmp_path, "rejected")

    assert pacs_programs.send(files, "OTHER", shared.port) != 0
    assert pacs_programs.send(files, "UCSEG", shared.port, calling="STRANGER") != 0
    assert not list((shared.spool / "arriving").iterdir())


def test_bad_series_never_stop_the_others_and_say_what_is_wrong(
    shared: Listening, archive: TestArchive, pacs_programs: PacsPrograms, tmp_path: Path
) -> None:
    gap = replace(TINY, study="canary gap", shape=(8, 24, 24))
    with_gap = write_ct_series(tmp_path / "gap", gap, omit=(3,))
    _, of_other_modality = study(tmp_path, "canary mr", modality="MR")
    good, files = study(tmp_path, "canary good")
    for sent in (with_gap, of_other_modality, files):
        assert pacs_programs.send(sent, "UCSEG", shared.port) == 0

    archive.wait_for(good.study_uid, RESULTS)
    shared.wait_until_it_says("UCSEG-E114")
    shared.wait_until_it_says("left alone: UCSEG-E121")

    (failed,) = (shared.spool / "failed").iterdir()
    reason = json.loads((failed / "failure.json").read_text())
    assert reason["code"] == "UCSEG-E114"
    assert len(list(failed.glob("*.dcm"))) == 7, "its images are kept"
    assert not any(word in (shared.said + str(reason)).lower() for word in PHI_CANARIES)
    assert archive.modalities(gap.study_uid) == {}


def test_damaged_object_is_refused_and_the_rest_of_the_association_is_kept(
    shared: Listening, pacs_programs: PacsPrograms, tmp_path: Path
) -> None:
    """An object without a study cannot be filed."""
    folder = tmp_path / "damaged"

    def without_study(index: int, dataset: FileDataset) -> None:
        if index == 0:
            del dataset.StudyInstanceUID

    files = write_ct_series(folder, replace(TINY, study="damaged"), edit=without_study)
    before = _counted(shared, "damaged"), _counted(shared, "stored")
    pacs_programs.send(files[:1], "UCSEG", shared.port)
    pacs_programs.send(files[1:], "UCSEG", shared.port)

    assert (_counted(shared, "damaged"), _counted(shared, "stored")) == (before[0] + 1, before[1] + 5)


def test_series_waits_for_the_rest_that_the_archive_has(
    shared: Listening, archive: TestArchive, pacs_programs: PacsPrograms, tmp_path: Path
) -> None:
    phantom, files = study(tmp_path, "counted")
    archive.pacs.store(files)
    assert pacs_programs.send(files[:4], "UCSEG", shared.port) == 0
    shared.wait_until_it_says("waits for the rest of 6 images, which the archive has")
    assert "6 images, which the archive has" in page(shared, "readyz").text

    assert pacs_programs.send(files[4:], "UCSEG", shared.port) == 0

    archive.wait_for(phantom.study_uid, RESULTS)
    assert archive.modalities(phantom.study_uid) == {**RESULTS, "CT": 6}


def test_second_listener_on_a_spool_or_port_is_refused(
    shared: Listening, archive: TestArchive, tiny_model: Path, tmp_path: Path
) -> None:
    same_spool = run("pacs", "listen", "--spool", shared.spool, *options(archive.dimse, tiny_model, "--monitor", "off"))
    same_port = run(
        *("pacs", "listen", "--spool", tmp_path, "--host", LOOPBACK, "--port", shared.port, "--monitor", "off"),
        *options(archive.dimse, tiny_model),
    )

    assert (same_spool.exit_code, same_port.exit_code) == (6, 6)
    assert "another listener uses this spool" in same_spool.stderr
    assert f"port {shared.port} cannot be had" in same_port.stderr


def test_report_of_a_series_is_kept_for_people_and_not_sent(
    archive: TestArchive, pacs_programs: PacsPrograms, tiny_model: Path, tmp_path: Path
) -> None:
    phantom, files = study(tmp_path, "canary report")
    reports = tmp_path / "reports"
    with listening(tmp_path / "listener", *options(archive.dimse, tiny_model, "--reports", reports)) as listener:
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        archive.wait_for(phantom.study_uid, RESULTS)
        wait_until_empty(listener)

    assert archive.modalities(phantom.study_uid) == RESULTS
    (key,) = re.findall(r"series (\w+): segmented", listener.said)
    (page,) = reports.iterdir()
    assert page.name == f"{key}.html"
    assert (reports.stat().st_mode & 0o777, page.stat().st_mode & 0o777) == (0o700, 0o600)
    text = page.read_text()
    assert "Segmentation report" in text
    assert phantom.series_uid in text, "by which it is found"
    assert not any(word in text.lower() for word in PHI_CANARIES)


def test_folder_for_reports_that_cannot_be_used_is_told_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    spool, a_file = tmp_path / "spool", tmp_path / "file"
    a_file.touch()
    own = options(f"ORTHANC@{LOOPBACK}:4242", tiny_model, "--monitor", "off", "--spool", spool, "--port", 0)

    in_spool = run("pacs", "listen", *own, "--reports", spool / "reports")
    no_folder = run("pacs", "listen", *own, "--reports", a_file)

    assert (in_spool.exit_code, no_folder.exit_code) == (6, 6)
    assert "lies in the spool" in in_spool.stderr
    assert "the folder for reports cannot be used: File exists" in no_folder.stderr


def test_listener_that_is_killed_at_any_stage_delivers_everything_once(
    pacs_programs: PacsPrograms, tiny_model: Path, tmp_path: Path
) -> None:
    ports = Pacs(free_port(), free_port())
    first, first_files = study(tmp_path, "first")
    second, second_files = study(tmp_path, "second")
    third, third_files = study(tmp_path, "third")
    storage = tmp_path / "orthanc"
    storage.mkdir()
    address = f"ORTHANC@{LOOPBACK}:{ports.dicom_port}"
    with listening(tmp_path / "listener", *options(address, tiny_model, "--connect-timeout", 2)) as listener:
        assert pacs_programs.send(first_files[:3], "UCSEG", listener.port) == 0
        listener.kill()  # while a series arrives
        listener.start()
        assert pacs_programs.send(first_files[3:], "UCSEG", listener.port) == 0
        listener.wait_until_it_says("complete with 6 images")
        listener.kill()  # while it is segmented
        listener.start()
        listener.wait_until_it_says("UCSEG-E170")  # the archive is not there yet
        assert pacs_programs.send(second_files, "UCSEG", listener.port) == 0
        with running_archive(pacs_programs, storage, ports) as archive:
            archive.wait_for(first.study_uid, {"SEG": 1})
            listener.kill()  # while it sends
        assert "segmented" in listener.said
        listener.start()
        assert pacs_programs.send(third_files, "UCSEG", listener.port) == 0
        with running_archive(pacs_programs, storage, ports) as archive:
            for phantom in (first, second, third):
                archive.wait_for(phantom.study_uid, RESULTS)
            wait_until_empty(listener)
            assert_once(archive, first, second, third)


def test_full_spool_refuses_says_so_and_takes_again_when_there_is_room(
    archive: TestArchive, pacs_programs: PacsPrograms, tiny_model: Path, tmp_path: Path
) -> None:
    _, files = study(tmp_path, "refused")
    with listening(
        tmp_path / "listener", *options(archive.dimse, tiny_model, "--spool-limit", 0.001, "--keep-free", 0)
    ) as listener:
        filler = listener.spool / "results" / "filler"
        filler.mkdir()
        (filler / "filler").write_bytes(bytes(1_100_000))
        deadline = time.monotonic() + 30.0
        while page(listener, "readyz").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)

        assert pacs_programs.send(files, "UCSEG", listener.port) != 0
        assert "the spool is full" in listener.said
        assert _counted(listener, "no room") >= 1
        assert page(listener, "readyz").json()["not_ready"] == ["the spool is full"]
        assert page(listener, "healthz").status_code == 200

        shutil.rmtree(filler)
        while page(listener, "readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert pacs_programs.send(files, "UCSEG", listener.port) == 0
        assert "the spool has room again" in listener.said


def _counted(listener: Listening, outcome: str) -> int:
    found = re.search(
        rf'^ucseg_pacs_instances_total{{outcome="{outcome}"}} (\d+)', page(listener, "metrics").text, re.M
    )
    assert found is not None
    return int(found[1])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
