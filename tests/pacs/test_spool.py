"""The folder of a listener: one user at a time, a limit, and names that say nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ucseg_runtime.errors import SpoolError
from ucseg_runtime.pacs.spool import FAILURE, Spool, SpoolLimit, opened_spool, read_json


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with opened_spool(tmp_path / "spool", b"secret") as opened:
        yield opened


def put(spool: Spool, stage: str, key: str, name: str = "a.dcm", size: int = 100) -> None:
    folder = spool.root / stage / key
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(bytes(size))


def test_spool_is_used_by_one_listener_alone(spool: Spool) -> None:
    with pytest.raises(SpoolError, match="another listener"), opened_spool(spool.root, b"secret"):
        pass


def test_spool_is_private_and_what_was_received_in_part_is_gone(tmp_path: Path) -> None:
    with opened_spool(tmp_path / "spool", b"secret") as spool:
        (spool.partial / "half").write_bytes(b"x")
    with opened_spool(tmp_path / "spool", b"secret") as spool:
        assert not list(spool.partial.iterdir())
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_folder_that_cannot_be_made_is_an_error_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("a file")

    with pytest.raises(SpoolError, match="cannot be used") as refused, opened_spool(tmp_path / "canary" / "x", b""):
        pass
    assert "canary" not in str(refused.value)


def test_moving_into_a_series_that_is_there_merges_them(spool: Spool) -> None:
    put(spool, "arriving", "key", "new.dcm")
    put(spool, "ready", "key", "old.dcm")

    spool.move("key", "arriving", "ready")

    assert [path.name for path in spool.files("ready", "key")] == ["new.dcm", "old.dcm"]
    assert spool.keys("arriving") == []


def test_limit_counts_everything_and_refuses_what_does_not_fit(spool: Spool) -> None:
    put(spool, "ready", "key", size=600)
    mark = (spool.root / "spool-mark").stat().st_size
    limit = SpoolLimit(spool, 1000 + mark, 0)

    assert (limit.used_bytes - mark, limit.has_room(400), limit.has_room(401)) == (600, True, False)
    limit.added(400)
    assert not limit.has_room(1)
    spool.remove("ready", "key")
    limit.recount()
    assert limit.used_bytes == mark


def test_disk_that_is_nearly_full_has_no_room(spool: Spool) -> None:
    assert not SpoolLimit(spool, 10**15, 10**18).has_room()


def test_oldest_failures_go_when_they_take_more_than_a_fourth(spool: Spool) -> None:
    for number, key in enumerate(["oldest", "middle", "newest"]):
        put(spool, "ready", key, size=100)
        spool.fail(key, "ready", {"code": "UCSEG-E114"})
        for path in (spool.series("failed", key) / FAILURE, spool.series("failed", key)):
            os.utime(path, (number, number))

    dropped = SpoolLimit(spool, 1200, 0).drop_oldest_failures()

    assert dropped == ["oldest"]
    assert read_json(spool.series("failed", "newest") / FAILURE) == {"code": "UCSEG-E114"}


def test_names_depend_on_the_secret(spool: Spool) -> None:
    other = Spool(spool.root, b"other")

    assert spool.series_key("1.2", "3.4") == spool.series_key("1.2", "3.4") != other.series_key("1.2", "3.4")
    assert spool.series_key("1.2", "3.4") != spool.series_key("1", "2.3.4")


def test_spool_of_another_secret_is_refused(tmp_path: Path) -> None:
    with opened_spool(tmp_path / "spool", b"one"):
        pass
    with pytest.raises(SpoolError, match="another site secret"), opened_spool(tmp_path / "spool", b"two"):
        pass
    with opened_spool(tmp_path / "spool", b"one"):
        pass
