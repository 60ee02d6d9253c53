"""A whole export: every fitting series once, failures alone, and nothing done twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.config import disable_value_validation

from tests.batch.exports import TINY, tree, write_export, write_mixed_export
from tests.command_line import run
from tests.phantoms import PHI_CANARIES, edit_file
from tests.served_phantom import ServedPhantom
from ucseg_runtime.batch.export_index import index_export
from ucseg_runtime.batch.leases import Leases
from ucseg_runtime.batch.run import STATE_FOLDER
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.publish import RECORD


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), 4, studies=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, export: Path) -> Path:
    """Everything of the export, done."""
    out = tmp_path_factory.mktemp("finished") / "out"
    batch(export, out, model, "--engine", "openvino")
    return out


@pytest.fixture
def done(tmp_path: Path, finished: Path) -> Path:
    """A copy of it, to be harmed."""
    return shutil.copytree(finished, tmp_path / "out")


def batch(export: Path, out: Path, model: Path, *more: object) -> dict[str, object]:
    result = run("batch", export, "--out", out, "--model", model, "--json", *more)
    assert result.exit_code in {0, 7}, result.output
    report: dict[str, object] = json.loads(result.stdout)
    return report


def records(out: Path) -> dict[str, int]:
    """When each record was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob(RECORD)}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_of_series_has_its_outcome(tmp_path: Path, model: Path) -> None:
    export = write_mixed_export(tmp_path / "canary export")

    result = run("batch", export, "--out", tmp_path / "out", "--model", model)

    assert result.exit_code == 7, result.output
    summary, failures = (rows_of(tmp_path / "out" / name) for name in ("summary.csv", "failures.csv"))
    assert len(summary) == 3, "one in two folders, one plain, one in the archive"
    assert [(row["state"], row["code"]) for row in sorted(failures, key=lambda row: row["code"])] == [
        ("failed", "UCSEG-E114"),
        ("unsuitable", "UCSEG-E121"),
    ]
    assert all(float(row["class 1_ml"]) > 0 for row in summary)
    said = (result.output + (tmp_path / "out" / "failures.csv").read_text()).lower()
    names = " ".join(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")).lower()
    assert not any(canary in text for canary in PHI_CANARIES for text in (said, names))


def test_what_cannot_be_read_is_said_and_the_exit_code_tells_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = write_export(tmp_path / "in", 2)
    (export / "notes.txt").write_text("nothing")
    forbidden = next(export.glob("canary*1"))
    iterdir = Path.iterdir

    def refuse_one(folder: Path) -> Iterator[Path]:
        if folder.name == forbidden.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse_one)
    result = run("batch", export, "--out", tmp_path / "out", "--model", model, "--json")

    assert result.exit_code == 7
    report = json.loads(result.stdout)
    assert report["counts"] == {"segmented": 1}
    assert report["unreadable"] == 1
    assert {(row["files"], row["code"]) for row in report["left_out"]} == {(1, "UCSEG-E101"), (1, "UCSEG-E102")}
    said = run("batch", export, "--out", tmp_path / "out", "--model", model).output
    assert "1 files or folders could not be read" in said
    assert "canary" not in said.replace(str(tmp_path), "").lower()


def test_results_are_those_of_single_runs(tmp_path: Path, model: Path, export: Path, finished: Path) -> None:
    record = sorted(finished.rglob(RECORD))[2]
    uid = json.loads(record.read_text())["series_uid"]

    alone = run("segment", export, "--series", uid, "--out", tmp_path, "--model", model, "--engine", "openvino")

    assert alone.exit_code == 0, alone.output
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (record.parent / path.name).read_bytes(), path.name


def test_second_run_does_nothing(done: Path, model: Path, export: Path) -> None:
    before, content = records(done), tree(done)

    report = batch(export, done, model, "--engine", "openvino")

    assert report["counts"] == {"done": 4}
    assert (records(done), tree(done)) == (before, content)
    assert len(rows_of(done / "summary.csv")) == 4, "the tables are whole again"


def damage_result(out: Path) -> None:
    path = next(out.rglob("segmentation.dcm"))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def lose_result(out: Path) -> None:
    next(out.rglob("uncertainty.dcm")).unlink()


def lose_record(out: Path) -> None:
    next(out.rglob(RECORD)).unlink()


def break_record(out: Path) -> None:
    next(out.rglob(RECORD)).write_text("{")


@pytest.mark.parametrize("harm", [damage_result, lose_result, lose_record, break_record])
def test_what_is_damaged_or_lost_is_done_again(done: Path, model: Path, export: Path, harm: object) -> None:
    content = tree(done)
    harm(done)  # type: ignore[operator]

    report = batch(export, done, model, "--engine", "openvino")

    assert report["counts"] in ({"done": 3, "segmented": 1}, {"segmented": 1, "done": 3})
    assert tree(done) == content


@pytest.mark.parametrize(
    "option",
    [
        ("--redo", "--engine", "openvino"),
        ("--seg-type", "labelmap", "--engine", "openvino"),
        ("--engine", "onnxruntime"),
    ],
    ids=["redo", "settings", "engine"],
)
def test_other_settings_and_engines_are_other_results(
    done: Path, model: Path, export: Path, option: tuple[str, ...]
) -> None:
    assert batch(export, done, model, *option)["counts"] == {"segmented": 4}


def test_series_that_grew_is_done_again(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "in", 2)
    last = sorted((export).rglob("*.dcm"))[-1]
    content = last.read_bytes()
    last.unlink()
    assert batch(export, tmp_path / "out", model)["counts"] == {"segmented": 2}
    last.write_bytes(content)

    report = batch(export, tmp_path / "out", model)

    assert report["counts"] == {"done": 1, "segmented": 1} or report["counts"] == {"segmented": 1, "done": 1}


def test_verify_sees_pixels_that_were_changed_in_place(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "in", 2)
    batch(export, tmp_path / "out", model)
    changed = sorted(export.rglob("*.dcm"))[0]
    content = bytearray(changed.read_bytes())
    content[-2] ^= 1
    changed.write_bytes(content)

    assert batch(export, tmp_path / "out", model)["counts"] == {"done": 2}, "UIDs and sizes are the same"
    planned = json.loads(
        run("batch", export, "--out", tmp_path / "out", "--model", model, "--verify", "--dry-run", "--json").stdout
    )
    assert [item["reason"] for item in planned["series"]].count("bytes of the input changed") == 1
    assert batch(export, tmp_path / "out", model, "--verify")["counts"] == {"segmented": 1, "done": 1}
    assert batch(export, tmp_path / "out", model, "--verify")["counts"] == {"done": 2}


def test_redo_and_verify_exclude_each_other(tmp_path: Path, export: Path) -> None:
    assert run("batch", export, "--out", tmp_path / "out", "--redo", "--verify").exit_code == 2


def test_shards_share_the_series_without_rest(tmp_path: Path, model: Path, export: Path, finished: Path) -> None:
    for index in (1, 2, 3):
        batch(export, tmp_path / "parts", model, "--engine", "openvino", "--shard", f"{index}/3")

    assert tree(tmp_path / "parts") == tree(finished)
    shares = [rows_of(path) for path in (tmp_path / "parts").glob("summary-*-of-3.csv")]
    assert sorted(row["series"] for share in shares for row in share) == [
        row["series"] for row in sorted(rows_of(finished / "summary.csv"), key=lambda row: row["series"])
    ]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_impossible_shards_are_refused(tmp_path: Path, export: Path, shard: str) -> None:
    assert run("batch", export, "--out", tmp_path, "--shard", shard).exit_code == 2


def test_folders_can_be_called_by_uid(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "in", 1)
    (source, *_) = export.rglob("*.dcm")
    header = pydicom.dcmread(source, stop_before_pixels=True)

    batch(export, tmp_path / "out", model, "--names", "uid")

    assert (tmp_path / "out" / header.StudyInstanceUID / header.SeriesInstanceUID / RECORD).is_file()


def test_uid_that_is_none_never_becomes_a_path(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "in", 1)
    with disable_value_validation():
        for path in export.rglob("*.dcm"):
            edit_file(path, lambda dataset: setattr(dataset, "SeriesInstanceUID", ".."))

    report = batch(export, tmp_path / "out", model, "--names", "uid")

    assert report["counts"] == {"segmented": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert all(len(Path(name).parts) == 3 for name in records(tmp_path / "out"))


def test_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path, model: Path) -> None:
    export = write_mixed_export(tmp_path / "in")

    report = batch(export, tmp_path / "out", model, "--dry-run")

    series = report["series"]
    assert isinstance(series, list)
    assert sorted(item["state"] for item in series) == ["bad", "run", "run", "run", "unsuitable"]
    assert report["to_run"] == 3
    assert all(item["seconds"] > 0 and item["megabytes"] > 0 for item in series if item["state"] == "run")
    assert not (tmp_path / "out").exists()


def test_young_series_are_left_for_the_next_run(tmp_path: Path, model: Path) -> None:
    export = write_export(tmp_path / "in", 2)
    old = time.time() - 3600
    for path in (export / "canary^patient 0").rglob("*.dcm"):
        os.utime(path, (old, old))

    report = batch(export, tmp_path / "out", model, "--settle", 600)

    assert report["counts"] in ({"segmented": 1, "unsettled": 1}, {"unsettled": 1, "segmented": 1})


def test_leases_of_others_are_waited_for(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = write_export(tmp_path / "in", 2)
    batch(export, tmp_path / "first", model)
    folder = tmp_path / "out" / STATE_FOLDER / "leases"
    folder.mkdir(parents=True)
    monkeypatch.setattr("ucseg_runtime.batch.run._PAUSE_S", 0.1)
    from ucseg_runtime.batch.places import Places
    from ucseg_runtime.site_secret import site_secret

    index = index_export(export)
    key = Places(tmp_path, "pseudonym", site_secret()).key_of(index.series[0])
    (folder / f"{key}.lease").write_text('{"machine": "elsewhere", "process": "1 1", "token": "t"}')

    report = batch(export, tmp_path / "out", model, "--lease", 1)

    assert report["counts"] == {"segmented": 2}
    assert list(folder.iterdir()) == []
    assert tree(tmp_path / "out") == tree(tmp_path / "first")


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_export_without_files_is_refused(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "canary").mkdir()

    result = run("batch", tmp_path / "canary", "--out", tmp_path / "out")

    assert result.exit_code == 3
    assert "canary" not in result.output


def test_index_takes_the_archive_for_a_copy_of_plain_files(tmp_path: Path) -> None:
    import zipfile

    from tests.phantoms import write_ct_series

    files = write_ct_series(tmp_path / "plain", TINY)
    with zipfile.ZipFile(tmp_path / "copy.zip", "w") as archive:
        for path in files:
            archive.write(path, path.name)

    index = index_export(tmp_path)

    assert [series.archive for series in index.series] == [-1]
    assert index.skipped["UCSEG-E112", "holds a series that lies elsewhere in the export too"] == 1


@pytest.mark.parametrize("where", ["a file", "the export", "below the export"])
def test_impossible_folders_of_results_are_refused_before_any_work(tmp_path: Path, model: Path, where: str) -> None:
    export = write_export(tmp_path / "in", 1)
    (tmp_path / "file").write_text("kept")
    out = {"a file": tmp_path / "file", "the export": export, "below the export": export / "out"}[where]
    before = sorted(tmp_path.rglob("*"))

    result = run("batch", export, "--out", out, "--model", model)

    assert result.exit_code == 6, result.output
    assert "UCSEG-E15" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_disk_that_is_full_stops_the_batch_with_its_own_code_and_resumes(
    tmp_path: Path, model: Path, export: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Leases, "claim", full)
        result = run("batch", export, "--out", tmp_path / "out", "--model", model, "--engine", "openvino")
    assert result.exit_code == 6, result.output
    assert "No space left" in result.output

    assert batch(export, tmp_path / "out", model, "--engine", "openvino")["counts"] == {"segmented": 4}
    assert tree(tmp_path / "out") == tree(finished)


class _CapturedError(Exception):
    """Ends a command once its arguments are known."""


def captured_servers(export: Path, out: Path, model: Path, shard: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers of a shard, the first of them first."""
    found: list[str] = []

    def plan(*arguments: object) -> None:
        (inference,) = (item for item in arguments if isinstance(item, InferenceOptions))
        assert inference.server is not None
        found.extend(str(address) for address in inference.server.addresses)
        raise _CapturedError

    monkeypatch.setattr("ucseg_runtime.batch.plan.plan_batch", plan)
    urls = [option for port in (8101, 8102, 8103) for option in ("--url", f"grpc://127.0.0.1:{port}")]
    run("batch", export, "--out", out, "--model", model, "--engine", "triton", *urls, "--shard", shard)
    return found


def test_every_url_reaches_the_batch_and_shards_begin_with_servers_of_their_own(
    tmp_path: Path, model: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = captured_servers(export, tmp_path / "out", model, "1/4", monkeypatch)

    assert first == [f"grpc://127.0.0.1:{port}" for port in (8101, 8102, 8103)]
    begins = [captured_servers(export, tmp_path / "out", model, f"{i}/4", monkeypatch)[0] for i in (2, 3, 4)]
    assert begins == [first[1], first[2], first[0]]


def test_batch_goes_on_with_the_second_server_where_the_first_is_dead(
    tmp_path: Path, served_phantom: ServedPhantom
) -> None:
    write_export(tmp_path / "in", 2)
    urls = ("--url", "grpc://127.0.0.1:9", "--url", served_phantom.url("grpc"))
    model = served_phantom.model.folder

    report = batch(tmp_path / "in", tmp_path / "out", model, "--engine", "triton", *urls, "--timeout", 60)

    assert report["counts"] == {"segmented": 2}


def test_options_of_a_cluster_need_the_cluster(tmp_path: Path, export: Path) -> None:
    result = run("batch", export, "--out", tmp_path, "--actors", 2)

    assert result.exit_code == 2
    assert "--runner ray" in result.output
