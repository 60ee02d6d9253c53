"""Files that are compared with what was written to them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.batch.faulty_disk import faulty_disk
from ucseg_runtime.safe_files import checked_file, write_checked

CONTENT = bytes(range(256)) * 8000


def test_content_is_written(tmp_path: Path) -> None:
    write_checked(tmp_path / "file", CONTENT)
    write_checked(tmp_path / "file", CONTENT[::-1])

    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_every_write_that_the_disk_only_claims_to_do_is_noticed(tmp_path: Path) -> None:
    def write_in_pieces() -> None:
        with checked_file(tmp_path / "file") as stream:
            for _ in range(3):
                stream.write(CONTENT)

    with faulty_disk() as disk:
        write_in_pieces()
    writes = [number for number, operation in enumerate(disk.operations, start=1) if operation == "write"]
    assert len(writes) >= 3
    for number in writes:
        with faulty_disk("dropped", number), pytest.raises(OSError, match="error"):
            write_in_pieces()


def test_nothing_that_was_written_is_gone_back_to(tmp_path: Path) -> None:
    with checked_file(tmp_path / "file") as stream, pytest.raises(io.UnsupportedOperation):
        stream.seek(0)
