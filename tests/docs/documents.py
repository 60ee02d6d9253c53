"""The pages of the documentation, and what can be checked of them as text: headings, links, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
"""Text of every page, by its path in the repository."""

SHELLS = ("sh", "bash", "shell", "console")

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s{2,})#.*$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


def commands(page: str) -> list[str]:
    """Every command of a page's shell blocks without comments, one line each unless a quoted text has several."""
    return [command for block in shell_blocks(page) for command in _commands(block)]


def shell_blocks(page: str) -> list[str]:
    """The shell blocks of a page."""
    return [body for _, kind, body in _BLOCK.findall(PAGES[page]) if kind in SHELLS]


def _commands(block: str) -> Iterator[str]:
    joined = ""
    for line in block.replace("\\\n", " ").splitlines():
        joined = f"{joined}\n{line}" if joined else _COMMENT.sub("", line).strip()
        if joined and _is_whole(joined):
            yield joined if "\n" in joined else " ".join(joined.split())
            joined = ""
    assert not joined, f"a quotation that does not end: {joined}"


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


def links(page: str) -> list[str]:
    """Targets of all links and pictures of a page outside of its code."""
    text = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", PAGES[page]))
    return _LINK.findall(text)


def anchors(page: str) -> set[str]:
    """Names of the headings of a page, as GitHub and the site make them."""
    headings = _HEADING.findall(_BLOCK.sub("", PAGES[page]))
    return {_slug(heading) for heading in headings}


def _slug(heading: str) -> str:
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words).strip())
