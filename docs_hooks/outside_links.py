"""Links of the pages to files of the repository outside of docs/ become the paths of these files.

The site is read without the repository, so such a link would lead nowhere.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401  (what MkDocs passes)
    """MkDocs calls this with the text of every page."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        return link[0] if path.startswith("docs/") else _as_path(link[1], path)

    return _LINK.sub(replaced, markdown)


def _as_path(words: str, path: str) -> str:
    return f"`{path}`" if words in path else f"{words} (`{path}`)"
