"""The server is unpacked once, whoever comes first."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from ucseg_serving import server_package
from ucseg_serving.server_package import install_server


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    server = "pytriton/tritonserver"
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
        archive.writestr(f"{server}/bin/tritonserver", "")
        archive.writestr(f"{server}/backends/python/model.py", "")
        archive.writestr(f"{server}/python_backend_stubs/{python}/triton_python_backend_stub", "")
    return tmp_path / "wheel.whl"


def test_two_that_unpack_the_server_at_once_get_the_same(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(server_package, "cache_folder", lambda: cache)
    monkeypatch.setattr(server_package, "fetch", lambda _: wheel)
    first = install_server()
    content = sorted(path.relative_to(cache) for path in cache.rglob("*"))
    aside = first.folder.rename(tmp_path / "aside")

    def fetch_while_another_is_faster(_: object) -> Path:
        aside.rename(first.folder)
        return wheel

    monkeypatch.setattr(server_package, "fetch", fetch_while_another_is_faster)
    assert install_server() == first
    assert sorted(path.relative_to(cache) for path in cache.rglob("*")) == content
