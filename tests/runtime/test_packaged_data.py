"""Archives are fetched with the real pip, here from a local folder, and refused when they are not the checked ones."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from ucseg_runtime.cache import cache_folder
from ucseg_runtime.errors import InputError
from ucseg_runtime.packaged_data import PackagedData, fetch

FILE = "made_up_images-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, with one wheel in it; the cache is elsewhere and empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, "w") as wheel:
        wheel.writestr("made_up_images/1.dcm", b"pixels")
        wheel.writestr(
            "made_up_images-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up-images\nVersion: 1.0\n"
        )
        wheel.writestr(
            "made_up_images-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("made_up_images-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UCSEG_CACHE", str(tmp_path / "cache"))
    return folder


def described(index: Path, sha256: str | None = None) -> PackagedData:
    digest = sha256 or hashlib.sha256((index / FILE).read_bytes()).hexdigest()
    return PackagedData(requirement="made-up-images==1.0", file=FILE, sha256=digest)


def test_fetch_keeps_the_archive_in_the_cache(index: Path) -> None:
    path = fetch(described(index))

    assert path == cache_folder() / FILE
    assert path.read_bytes() == (index / FILE).read_bytes()


def test_fetch_again_needs_no_index(index: Path) -> None:
    data = described(index)
    first = fetch(data)
    (index / FILE).unlink()

    assert fetch(data) == first


def test_fetch_refuses_another_archive_under_the_same_version(index: Path) -> None:
    with pytest.raises(InputError, match="not the checked one"):
        fetch(described(index, sha256="0" * 64))

    assert list(cache_folder().iterdir()) == []


def test_fetch_replaces_a_damaged_archive_in_the_cache(index: Path) -> None:
    cache_folder().mkdir()
    (cache_folder() / FILE).write_bytes(b"half an arch")

    assert fetch(described(index)).read_bytes() == (index / FILE).read_bytes()


def test_fetch_says_what_to_do_when_pip_finds_nothing(index: Path) -> None:
    (index / FILE).unlink()
    data = PackagedData(requirement="made-up-images==1.0", file=FILE, sha256="0" * 64)

    with pytest.raises(InputError, match="made-up-images==1.0") as caught:
        fetch(data)

    assert "cache folder" in caught.value.hint
