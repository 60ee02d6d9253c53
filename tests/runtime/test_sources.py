"""What an input may be: a folder, a file, a DICOMDIR with what lies around it, a zip archive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from tests.archives import archive_with, link, overlapping, zip_of, zipped_series
from tests.model_phantom import ModelPhantom
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from ucseg_runtime.cli.app import app
from ucseg_runtime.dicom.archive import ArchiveLimits
from ucseg_runtime.dicom.files import FoundFile
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan, scan_files
from ucseg_runtime.dicom.sources import opened_input
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.volume import Volume

SMALL = CtPhantom(shape=(4, 12, 10))


@pytest.fixture(autouse=True)
def spool_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; empty again after every test."""
    folder = tmp_path_factory.mktemp("spool")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom")


def volume_of(input: Path) -> Volume:
    with opened_input(input) as files:
        return read_volume(select_series(scan_files(files), "CT").chosen)


def members_of(archive: Path) -> tuple[FoundFile, ...]:
    with opened_input(archive) as files:
        return files


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archive_gives_the_volume_of_its_folder(tmp_path: Path, compression: int) -> None:
    write_ct_series(tmp_path / "study" / "deep" / "er")

    volume = volume_of(zip_of(tmp_path / "study", tmp_path / "study.zip", compression))

    np.testing.assert_array_equal(volume.voxels, CtPhantom().hu)
    assert volume.geometry.matches(CtPhantom().geometry)


def test_archive_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    archive = zipped_series(tmp_path, SMALL)

    assert volume_of(archive.rename(tmp_path / "export.dcm")).voxels.shape == SMALL.shape


def test_dicom_file_that_is_an_archive_as_well_is_read_as_dicom(tmp_path: Path) -> None:
    archive = zipped_series(tmp_path, SMALL).read_bytes()
    image = write_ct_series(tmp_path / "image", SMALL)[0]
    image.write_bytes(archive[:4] + image.read_bytes()[4:] + archive)

    with opened_input(image) as files:
        assert [found.path for found in files] == [image]


def test_members_lie_in_a_private_folder_under_numbers_and_are_gone_afterwards(
    tmp_path: Path, spool_folder: Path
) -> None:
    archive = archive_with([("../../canary/escape.dcm", b"x"), ("/etc/canary", b"y"), ("C:\\canary", b"z")])(tmp_path)

    with opened_input(archive) as files:
        assert [found.path.name for found in files] == ["000001", "000002", "000003"]
        (folder,) = spool_folder.iterdir()
        assert {found.path.parent for found in files} == {folder}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [found.path.read_bytes() for found in files] == [b"x", b"y", b"z"]

    assert not list(spool_folder.iterdir())


def test_nothing_is_left_when_reading_fails(tmp_path: Path, spool_folder: Path) -> None:
    with pytest.raises(KeyError), opened_input(zipped_series(tmp_path)):
        raise KeyError

    assert not list(spool_folder.iterdir())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_leaves_nothing_in_the_temporary_folder(tmp_path: Path, spool_folder: Path, signum: int) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # in background jobs it is ignored\n"
        "from pathlib import Path\n"
        "from ucseg_runtime.cli.reporting import reported\n"
        "from ucseg_runtime.dicom.sources import opened_input\n"
        "with reported(False), opened_input(Path(sys.argv[1])):\n"
        "    print('open', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.1)  # a signal just before a long sleep would be obeyed after it\n"
    )
    archive = zipped_series(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", program, archive], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    assert list(spool_folder.iterdir())

    process.send_signal(signum)
    process.communicate(timeout=60)

    assert process.returncode != 0
    assert not list(spool_folder.iterdir())


def test_other_members_are_left_out_with_a_reason(tmp_path: Path) -> None:
    images = [(path.name, path.read_bytes()) for path in write_ct_series(tmp_path, SMALL)]
    inner = zipped_series(tmp_path / "inner", SMALL).read_bytes()
    archive = archive_with(
        [*images, ("readme.txt", b"canary"), ("viewer.jar", inner), link("link.dcm", "/etc/passwd"), ("empty/", b"")]
    )(tmp_path)

    with opened_input(archive) as files:
        found = scan_files(files)

    assert [series.number_of_instances for series in found.series] == [4]
    assert [(item.ordinal, item.total, item.code) for item in found.skipped] == [
        (5, 7, "UCSEG-E101"),
        (6, 7, "UCSEG-E125"),
        (7, 7, "UCSEG-E102"),
    ]


def test_archive_in_a_folder_is_left_out_with_advice(tmp_path: Path) -> None:
    zipped_series(tmp_path, SMALL)
    write_ct_series(tmp_path, SMALL)

    (skipped,) = scan(tmp_path).skipped

    assert skipped.code == "UCSEG-E101"
    assert "zip archive, to be given as an input of its own" in skipped.reason


def test_slice_of_nothing_but_air_does_not_make_an_archive_a_bomb(tmp_path: Path) -> None:
    """Such a slice alone is compressed a thousandfold."""
    paths = write_ct_series(tmp_path / "study", CtPhantom(shape=(6, 128, 128)))
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: -2 * 128 * 128] + b"\0" * 2 * 128 * 128)

    assert volume_of(zip_of(tmp_path / "study", tmp_path / "study.zip")).voxels.shape == (6, 128, 128)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ArchiveLimits(members=3), r"has 4 members \(at most 3\)"),
        (ArchiveLimits(directory_bytes=10), r"list of members has \d+ bytes \(at most 10\)"),
        (ArchiveLimits(bytes=1000), r"declare \d+ bytes \(at most 1000"),
        (ArchiveLimits(ratio=1), r"declare \d+ bytes \(at most"),
    ],
)
def test_archive_over_a_limit_is_refused_before_anything_is_written(
    tmp_path: Path, spool_folder: Path, monkeypatch: pytest.MonkeyPatch, limits: ArchiveLimits, reason: str
) -> None:
    archive = zipped_series(tmp_path, SMALL)
    monkeypatch.setattr("ucseg_runtime.dicom.archive._Spool.files", lambda self: pytest.fail("a member was inflated"))

    with pytest.raises(InputError, match=reason) as caught, opened_input(archive, limits=limits):
        pass

    assert caught.value.code == "UCSEG-E125"
    assert not list(spool_folder.iterdir())


def test_bytes_that_come_out_are_counted_whatever_the_archive_declares(
    tmp_path: Path, spool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucseg_runtime.dicom.archive._require_plain_members", lambda *_: None)

    with pytest.raises(InputError, match="inflate to more than") as caught, opened_input(overlapping(tmp_path)):
        pass

    assert caught.value.code == "UCSEG-E125"
    assert not list(spool_folder.iterdir())


def test_member_over_the_size_of_a_file_is_left_out_and_not_inflated(tmp_path: Path) -> None:
    archive = zipped_series(tmp_path, SMALL)

    with opened_input(archive, max_file_bytes=100) as files:
        assert {(found.refusal_code, found.path.exists()) for found in files} == {("UCSEG-E102", False)}


def test_full_temporary_folder_is_an_output_error(
    tmp_path: Path, spool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    archive = zipped_series(tmp_path, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OutputError, match=r"No space left on device.*TMPDIR") as caught, opened_input(archive):
            pass

    assert caught.value.exit_code == 6
    assert not [canary for canary in PHI_CANARIES if canary in str(caught.value).lower()]
    assert not list(spool_folder.iterdir())


def test_dicomdir_stands_for_the_files_around_it() -> None:
    directory = Path(get_testdata_file("DICOMDIR"))

    with opened_input(directory) as files:
        found = scan_files(files)

    assert found == scan(directory.parent)
    assert sum(series.number_of_instances for series in found.series) > 20
    assert "UCSEG-E121" in {item.code for item in found.skipped}


@pytest.mark.parametrize("given", ["DICOMDIR", ""], ids=["directory file", "folder"])
def test_dicomdir_that_lists_nothing_of_the_study_does_not_hide_it(tmp_path: Path, given: str) -> None:
    write_ct_series(tmp_path / "images", SMALL)
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "DICOMDIR")

    assert volume_of(tmp_path / given).voxels.shape == SMALL.shape


def test_text_file_called_dicomdir_is_not_followed(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL)
    (tmp_path / "DICOMDIR").write_text("canary")

    with opened_input(tmp_path / "DICOMDIR") as files:
        assert [found.path.name for found in files] == ["DICOMDIR"]


def test_command_line_writes_the_same_bytes_for_a_study_however_it_is_given(
    tmp_path: Path, spool_folder: Path, model: Path
) -> None:
    write_ct_series(tmp_path / "study")
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "study" / "DICOMDIR")
    archive = zip_of(tmp_path / "study", tmp_path / "canaryname.zip")
    results = []
    for number, inputs in enumerate(
        [[tmp_path / "study"], [archive], [tmp_path / "study" / "DICOMDIR"], [archive, tmp_path / "study"]]
    ):
        out = tmp_path / str(number)
        arguments = [*map(str, inputs), "--out", str(out), "--model", str(model), "--no-gate"]
        result = CliRunner().invoke(app, ["segment", *arguments])
        assert result.exit_code == 0, result.output
        assert not [canary for canary in PHI_CANARIES if canary in result.output.lower()]
        folders = [out] if len(inputs) == 1 else [out / "1", out / "2"]
        results += [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]

    assert len(results) == 5
    assert all(files == results[0] for files in results)
    assert not list(spool_folder.iterdir())


def test_inspect_and_plan_look_into_archives(tmp_path: Path, model: Path) -> None:
    archive = zipped_series(tmp_path)

    inspected = CliRunner().invoke(app, ["inspect", str(archive), "--model", str(model), "--show-paths"])
    planned = CliRunner().invoke(app, ["plan", str(archive), "--model", str(model), "--no-gate", "--json"])

    assert "used" in inspected.stdout
    assert "1\tcanaryfile_0000.dcm" in inspected.stdout
    assert json.loads(planned.stdout)["source_shape"] == [10, 40, 48]


@pytest.mark.parametrize("kind", ["pipe", "missing"])
def test_input_that_is_no_file_is_judged_without_opening_it(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "canary")
    started = time.monotonic()

    with pytest.raises(InputError) as caught:
        volume_of(tmp_path / "canary")

    assert caught.value.code == "UCSEG-E102"
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small archive as bytes, one member stored and two compressed."""
    folder = tmp_path_factory.mktemp("good")
    paths = write_ct_series(folder, CtPhantom(shape=(3, 12, 10)))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path, method in zip(paths, (zipfile.ZIP_STORED, *[zipfile.ZIP_DEFLATED] * 2), strict=True):
            archive.write(path, path.name, method)
    return (folder / "a.zip").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_archives_give_input_errors_or_files(
    three_members: bytes, spool_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Anything else that escapes is a defect. Half of the changes hit the list of members at the end."""
    content = bytearray(three_members)
    listed = content.index(b"PK\1\2")
    for _ in range(data.draw(st.integers(1, 6))):
        first = data.draw(st.sampled_from([4, listed]))
        place = data.draw(st.integers(first, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    archive = tmp_path_factory.mktemp("mutant") / "a.zip"
    archive.write_bytes(bytes(content))

    try:
        with opened_input(archive) as files:
            scan_files(files)
    except InputError as error:
        refusal = error
    else:
        refusal = None

    assert refusal is None or refusal.code in {f"UCSEG-E{number}" for number in (101, 102, 103, 105, 108, 125)}
    assert not list(spool_folder.iterdir())
