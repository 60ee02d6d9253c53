"""What the documents say is checked against the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ucseg_runtime.publish import RESULT_NAMES

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"UCSEG-E\d{3}")


def test_every_error_code_is_documented_and_none_is_made_up() -> None:
    sources = [
        path for folder in ("ucseg_runtime", "training", "export", "serving") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {code for path in sources for code in CODE.findall(path.read_text(encoding="utf-8"))}
    documented = set(re.findall(r"^\| (UCSEG-E\d{3}) ", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE))

    assert documented == used - {"UCSEG-E100"}, "E100 is the root class's placeholder and never raised"


def test_install_page_has_every_extra_and_every_variable() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    folders = ("ucseg_runtime", "training", "export", "serving")
    sources = "".join(path.read_text("utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))

    assert [name for name in extras if not re.search(rf"^\| .*`{name}`.* \|", page, re.MULTILINE)] == []
    assert set(re.findall(r"`(UCSEG_[A-Z_]+)`", page)) == set(re.findall(r'"(UCSEG_[A-Z_]+)"', sources))


def test_outputs_page_has_every_name_that_a_run_may_write() -> None:
    page = (ROOT / "docs" / "outputs.md").read_text("utf-8")
    assert [name for name in RESULT_NAMES if f"`{name}`" not in page] == []
