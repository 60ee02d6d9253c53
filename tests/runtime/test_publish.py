"""Publishing results: all or nothing, whatever fails and whenever, and nothing of others is touched."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ucseg_runtime import publish
from ucseg_runtime.config import OutputOptions, SegEncoding
from ucseg_runtime.errors import OutputError, OutputExistsError
from ucseg_runtime.publish import (
    LABELS_NIFTI,
    MONTAGE,
    RECORD,
    REPORT,
    RESULT_NAMES,
    SEGMENTATION,
    UNCERTAINTY,
    check_output_folder,
    space_needed,
    staged_results,
)

FIRST = {SEGMENTATION: b"first segmentation", REPORT: b"first report", LABELS_NIFTI: b"first labels"}
SECOND = {SEGMENTATION: b"second segmentation", UNCERTAINTY: b"second map", REPORT: b"second report"}
REPOSITORY = Path(publish.__file__).parents[1]
SYSTEM_CALLS = ("mkdir", "replace", "fsync", "chmod", "open", "unlink", "rmdir")


def publish_files(folder: Path, files: dict[str, bytes], *, overwrite: bool = False) -> tuple[str, ...]:
    with staged_results(folder, overwrite) as staging:
        for name, content in files.items():
            staging.path(name).write_bytes(content)
        return staging.publish({"schema_version": 1, "content": files[SEGMENTATION].decode()})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def is_finished(folder: Path) -> bool:
    """Whether a folder proves that it holds complete results: the rule that resuming runs rely on."""
    if not (folder / RECORD).is_file():
        return False
    outputs = json.loads((folder / RECORD).read_text())["outputs"]
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
        for name, entry in outputs.items()
    )


# What is published


def test_results_and_a_record_of_them_are_in_the_folder(tmp_path: Path) -> None:
    names = publish_files(tmp_path / "out", FIRST)

    assert names == (SEGMENTATION, REPORT, LABELS_NIFTI, RECORD)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["content"] == "first segmentation"
    assert record["outputs"][REPORT] == {"sha256": hashlib.sha256(b"first report").hexdigest(), "size": 12}
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*FIRST, RECORD])
    assert is_finished(tmp_path / "out")


def test_the_same_results_give_the_same_record(tmp_path: Path) -> None:
    publish_files(tmp_path / "one", FIRST)
    publish_files(tmp_path / "other", FIRST)

    assert (tmp_path / "one" / RECORD).read_bytes() == (tmp_path / "other" / RECORD).read_bytes()


def test_the_record_is_plain_json_without_nan(tmp_path: Path) -> None:
    with staged_results(tmp_path / "out", overwrite=False) as staging:
        staging.publish({"measurements": [{"mean_uncertainty": math.nan, "volume_ml": 0.0}], "pair": (1, 2)})

    record = json.loads((tmp_path / "out" / RECORD).read_text(), parse_constant=pytest.fail)
    assert record["measurements"] == [{"mean_uncertainty": None, "volume_ml": 0.0}]
    assert record["pair"] == [1, 2]


def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        publish_files(tmp_path / "deep" / "out", FIRST)
    finally:
        os.umask(umask)

    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "deep" / "out").iterdir()} == {0o600}
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700


def test_nothing_is_visible_before_it_is_published(tmp_path: Path) -> None:
    with staged_results(tmp_path / "out", overwrite=False) as staging:
        staging.path(SEGMENTATION).write_bytes(b"x")
        assert not [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")]
        assert staging.path(SEGMENTATION).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["notes.txt", "../segmentation.dcm", RECORD])
def test_other_names_are_not_results(tmp_path: Path, name: str) -> None:
    with staged_results(tmp_path, overwrite=False) as staging, pytest.raises(ValueError, match="not the name"):
        staging.path(name)


# What was there before


@pytest.mark.parametrize("name", RESULT_NAMES)
def test_a_folder_with_any_result_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"earlier")

    with pytest.raises(OutputExistsError, match=name) as caught:
        check_output_folder(tmp_path, overwrite=False)
    with pytest.raises(OutputExistsError):
        publish_files(tmp_path, FIRST)

    assert caught.value.exit_code == 6
    assert contents(tmp_path) == {name: b"earlier"}


def test_overwriting_replaces_results_and_removes_stale_ones(tmp_path: Path) -> None:
    publish_files(tmp_path, FIRST)

    publish_files(tmp_path, SECOND, overwrite=True)

    found = contents(tmp_path)
    assert found.pop(RECORD)
    assert found == SECOND
    assert is_finished(tmp_path)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    foreign = {"notes.txt": b"mine", ".hidden": b"mine too", "segmentation.dcm.bak": b"old"}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)

    publish_files(tmp_path, FIRST)
    publish_files(tmp_path, SECOND, overwrite=True)

    assert {name: contents(tmp_path)[name] for name in foreign} == foreign


def test_a_link_with_the_name_of_a_result_is_replaced_and_its_target_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    out = tmp_path / "out"
    out.mkdir()
    (out / SEGMENTATION).symlink_to(tmp_path / "precious")

    publish_files(out, FIRST, overwrite=True)

    assert not (out / SEGMENTATION).is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"keep"


def test_a_folder_with_the_name_of_a_result_is_refused_also_when_overwriting(tmp_path: Path) -> None:
    (tmp_path / SEGMENTATION).mkdir()

    with pytest.raises(OutputError, match="folder with the name"):
        check_output_folder(tmp_path, overwrite=True)


def test_results_that_appear_meanwhile_are_not_overwritten(tmp_path: Path) -> None:
    with staged_results(tmp_path, overwrite=False) as staging:
        staging.path(SEGMENTATION).write_bytes(b"mine")
        publish_files(tmp_path, FIRST)
        with pytest.raises(OutputExistsError):
            staging.publish({})

    found = contents(tmp_path)
    assert found.pop(RECORD)
    assert found == FIRST


# Folders that cannot be written


def test_checking_a_folder_that_does_not_exist_makes_nothing(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "out", overwrite=False)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", [".", "out", "deep/out"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"x")

    with pytest.raises(OutputError, match="not a folder"):
        check_output_folder(tmp_path / "file" / below, overwrite=False)


def test_a_dangling_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(OutputError, match="not a folder"):
        check_output_folder(tmp_path / "link", overwrite=False)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a test that runs as root is never refused

    with pytest.raises(OutputError, match="permission"):
        check_output_folder(tmp_path, overwrite=False)


def test_a_disk_with_too_little_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="MB left"):
        check_output_folder(tmp_path / "out", overwrite=False, needed_bytes=1 << 62)


def test_space_covers_what_each_object_takes_uncompressed() -> None:
    shape, classes = (133, 512, 512), 7
    voxels = 133 * 512 * 512

    assert space_needed(shape, classes, OutputOptions()) > voxels * 7 / 8 + 2 * voxels
    assert space_needed(
        shape, classes, OutputOptions(SegEncoding("fractional"), extras=frozenset({"nifti"}))
    ) > voxels * (7 + 2 + 3)


def test_messages_hold_neither_paths_nor_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space", str(tmp_path / "Doe^Jane"))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OutputError, match="No space left on device") as caught:
        publish_files(tmp_path / "Doe^Jane", FIRST)

    assert "Doe" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


# Failures in between


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), RuntimeError("defect")])
def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path, failure: BaseException) -> None:
    expected = OutputError if isinstance(failure, OSError) else type(failure)

    def write_half(folder: Path) -> None:
        with staged_results(folder, overwrite=False) as staging:
            staging.path(SEGMENTATION).write_bytes(b"half")
            raise failure

    with pytest.raises(expected):
        write_half(tmp_path / "new" / "out")

    assert not list(tmp_path.iterdir())


def test_results_that_are_never_published_are_dropped(tmp_path: Path) -> None:
    with staged_results(tmp_path / "out", overwrite=False) as staging:
        staging.path(MONTAGE).write_bytes(b"x")

    assert not list(tmp_path.iterdir())


class FailingCall:
    """Stands for the operating system: lets calls of some functions pass and fails the n-th.

    Args:
        number: The call that fails, from 1.
        error: What it raises.
    """

    def __init__(self, number: int, error: BaseException) -> None:
        self.left = number
        self.error = error

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise self.error
            return function(*arguments, **options)

        return called


def _failing_at_each_call(folder: Path, error: BaseException) -> Iterator[int]:
    """Publish over and over, each time with the next system call failing, until none is left to fail."""
    for number in range(1, 500):
        failing = FailingCall(number, error)
        with pytest.MonkeyPatch.context() as patched:
            for name in SYSTEM_CALLS:
                patched.setattr(os, name, failing.wrap(getattr(os, name)))
            try:
                publish_files(folder, SECOND, overwrite=True)
            except (OutputError, KeyboardInterrupt):
                yield number
            else:
                assert failing.left > 0, "a failure was swallowed"
                return
    pytest.fail("publishing never succeeded")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_whichever_call_fails_the_folder_holds_the_old_results_or_the_new(tmp_path: Path, error: BaseException) -> None:
    publish_files(tmp_path, FIRST)
    before = contents(tmp_path)
    failures = 0

    for number in _failing_at_each_call(tmp_path, error):
        failures += 1
        check_output_folder(tmp_path, overwrite=True)  # what the next run does first
        after = contents(tmp_path)
        assert after == before or {**after, RECORD: b""} == {**SECOND, RECORD: b""}, number
        assert is_finished(tmp_path), number
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        publish_files(tmp_path, FIRST)

    assert failures > 15


def test_a_failure_after_the_last_file_is_in_place_still_brings_the_old_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_files(tmp_path, FIRST)
    before = contents(tmp_path)
    fsync, record = os.fsync, tmp_path / RECORD
    old_record = record.read_bytes()

    def fail_once_the_new_record_is_in_place(descriptor: int) -> None:
        if record.exists() and record.read_bytes() != old_record:
            raise OSError(errno.EIO, "input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once_the_new_record_is_in_place)

    with pytest.raises(OutputError):
        publish_files(tmp_path, SECOND, overwrite=True)

    assert contents(tmp_path) == before


def test_a_run_that_is_killed_at_any_call_is_undone_by_the_next(tmp_path: Path) -> None:
    """The process ends at the n-th system call without any clean-up, as with kill -9."""
    out, kills = tmp_path / "out", 0
    for number in range(1, 200):
        shutil.rmtree(out, ignore_errors=True)
        publish_files(out, FIRST)
        before = contents(out)
        if not _killed_at(number, out):
            break
        kills += 1
        finished_before_looking = is_finished(out)
        check_output_folder(out, overwrite=True)
        after = contents(out)
        assert is_finished(out), number
        assert after == before or {**after, RECORD: b""} == {**SECOND, RECORD: b""}, number
        assert not finished_before_looking or after.keys() in (before.keys(), {*SECOND, RECORD}), number
    assert kills > 15


_DYING_RUN = """
import os, sys
from pathlib import Path
from ucseg_runtime.publish import staged_results

folder, number, calls, files = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(), eval(sys.argv[4])
count = 0

def dying(function):
    def called(*arguments, **options):
        global count
        count += 1
        if count == number:
            os._exit(9)
        return function(*arguments, **options)
    return called

for name in calls:
    setattr(os, name, dying(getattr(os, name)))
with staged_results(folder, overwrite=True) as staging:
    for name, content in files.items():
        staging.path(name).write_bytes(content)
    staging.publish({})
"""


def _killed_at(number: int, out: Path) -> bool:
    """Publish in a process that dies at the n-th call; whether it died."""
    arguments = [str(out), str(number), " ".join(SYSTEM_CALLS), repr(SECOND)]
    run = subprocess.run([sys.executable, "-c", _DYING_RUN, *arguments], cwd=REPOSITORY, check=False)
    assert run.returncode in {0, 9}
    return run.returncode == 9


# Other runs


def test_left_overs_of_killed_runs_are_removed(tmp_path: Path) -> None:
    left_over = tmp_path / ".ucseg-staging-dead"
    left_over.mkdir()
    (left_over / SEGMENTATION).write_bytes(b"half")

    publish_files(tmp_path, FIRST)

    assert not left_over.exists()
    assert is_finished(tmp_path)


def test_a_run_that_still_goes_on_is_left_alone(tmp_path: Path) -> None:
    with staged_results(tmp_path, overwrite=True) as slow:
        slow.path(SEGMENTATION).write_bytes(b"slow")
        publish_files(tmp_path, FIRST)
        slow.publish({})

    assert (tmp_path / SEGMENTATION).read_bytes() == b"slow"
    assert is_finished(tmp_path)


def test_a_run_waits_while_another_one_publishes(tmp_path: Path) -> None:
    publish_files(tmp_path, FIRST)
    publishing = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(publishing, fcntl.LOCK_EX)

    with ThreadPoolExecutor() as pool:
        run = pool.submit(publish_files, tmp_path, SECOND, overwrite=True)
        time.sleep(0.3)
        waited = not run.done() and (tmp_path / SEGMENTATION).read_bytes() == FIRST[SEGMENTATION]
        os.close(publishing)
        run.result(timeout=60)

    assert waited
    assert (tmp_path / SEGMENTATION).read_bytes() == SECOND[SEGMENTATION]


def test_runs_that_publish_at_the_same_time_leave_the_results_of_one(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from ucseg_runtime.publish import SEGMENTATION, REPORT, staged_results
        for turn in range(20):
            with staged_results(Path(sys.argv[1]), overwrite=True) as staging:
                for name in (SEGMENTATION, REPORT):
                    staging.path(name).write_text(sys.argv[2])
                staging.publish({"who": sys.argv[2]})
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    runs = [subprocess.Popen([*command, who], cwd=REPOSITORY) for who in ("one", "two")]

    assert [run.wait() for run in runs] == [0, 0]
    assert is_finished(tmp_path)
    who = json.loads((tmp_path / RECORD).read_text())["who"]
    assert {(tmp_path / name).read_text() for name in (SEGMENTATION, REPORT)} == {who}
    assert sorted(os.listdir(tmp_path)) == sorted([SEGMENTATION, REPORT, RECORD])


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_staging_folder_that_its_run_removes_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    other = tmp_path / ".ucseg-staging-other"
    other.mkdir()
    open_folder, lock = os.open, fcntl.flock

    def open_after_removal(path: Path, flags: int) -> int:
        if path == other and moment == "before it is opened":
            other.rmdir()
        return open_folder(path, flags)

    def lock_after_removal(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_NB and moment == "before it is locked":
            other.rmdir()
        lock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_after_removal)
        patch.setattr(fcntl, "flock", lock_after_removal)
        check_output_folder(tmp_path, overwrite=True)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("made", ["out", "out/.ucseg-staging-"])
def test_signal_right_after_a_folder_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    make = Path.mkdir

    def make_and_be_stopped(path: Path, *arguments: object, **options: object) -> None:
        make(path, *arguments, **options)  # type: ignore[arg-type]
        if str(path.relative_to(tmp_path)).startswith(made):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", make_and_be_stopped)
    with pytest.raises(KeyboardInterrupt), staged_results(tmp_path / "out", overwrite=False):
        pytest.fail("a run went on after it was stopped")

    assert list(tmp_path.iterdir()) == []
