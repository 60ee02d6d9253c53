"""What the documents say is checked against the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"UCSEG-E\d{3}")


def test_every_error_code_is_documented_and_none_is_made_up() -> None:
    sources = [
        path for folder in ("ucseg_runtime", "training", "export", "serving") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {code for path in sources for code in CODE.findall(path.read_text(encoding="utf-8"))}
    documented = set(re.findall(r"^\| (UCSEG-E\d{3}) ", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE))

    assert documented == used - {"UCSEG-E100"}, "E100 is the root class's placeholder and never raised"
