"""Without the extra: everything else works, and the message names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.batch.exports import TINY
from tests.phantoms import write_ct_series
from ucseg_runtime.cli.app import app

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for name in ("pynetdicom", "dicomweb_client", "prometheus_client"):
    sys.modules[name] = None
import ucseg_runtime
for module in pkgutil.walk_packages(ucseg_runtime.__path__, "ucseg_runtime."):
    if "pacs" in module.name:
        importlib.import_module(module.name)
"""


def test_every_module_can_be_imported_without_it() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], check=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pacs", "query", "A@127.0.0.1:1"),
        ("pacs", "query", "dicomweb+http://127.0.0.1:1/dicom-web"),
        ("pacs", "listen", "--forward", "A@127.0.0.1:1", "--monitor", "off"),
        ("segment", "dicomweb+http://127.0.0.1:1/x/studies/1/series/2", "--out", "out"),
    ],
)
def test_command_that_needs_it_names_it(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pynetdicom", "dicomweb_client", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 5, result.output
    assert "UCSEG-E141" in result.stderr
    assert "pip install 'ucseg[pacs]'" in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_folders_are_segmented_without_it(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pynetdicom", "dicomweb_client", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)
    write_ct_series(tmp_path / "series", TINY)
    arguments = (
        "segment",
        tmp_path / "series",
        "--out",
        tmp_path / "out",
        "--model",
        tiny_model,
        "--engine",
        "openvino",
    )

    assert CliRunner().invoke(app, list(map(str, arguments))).exit_code == 0
