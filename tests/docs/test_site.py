"""The site: built strictly, from the schemas as they are, and read without any other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import BaseModel

from docs_hooks.field_tables import field_table
from tests.debian import ProgramsUnreachableError
from tests.docs.documents import PAGES, ROOT
from tests.viewer.browser import open_browser
from tests.viewer.programs import ViewerPrograms, install_programs
from ucseg_runtime.manifest import Manifest, Tiling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "audio": "src",
    "video": "src",
}
_FOREIGN = re.compile(r"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by MkDocs; any warning ends that."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    program = Path(sys.executable).with_name("mkdocs")
    finished = subprocess.run(
        [program, "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    expected = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")}
    built = {path.relative_to(site).as_posix().removesuffix(".html") for path in site.rglob("*.html")}
    assert built == expected | {"404"}


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    loaded = [item for page in pages for item in things_loaded(page.read_text(encoding="utf-8"))]
    assert len(loaded) > 3 * len(pages), "style sheets and scripts are found"
    assert [item for item in loaded if _FOREIGN.match(item)] == []


def test_no_style_sheet_loads_anything_from_another_host(site: Path) -> None:
    sheets = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert sheets
    assert [found for text in sheets for found in re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text)] == []


def test_everything_that_a_page_loads_is_part_of_the_site(site: Path) -> None:
    missing = [
        f"{page.name}: {item}"
        for page in site.rglob("*.html")
        if page.name != "404.html"  # a server gives it from anywhere, so its links begin with /
        for item in things_loaded(page.read_text(encoding="utf-8"))
        if not item.startswith("data:") and not (page.parent / item).is_file()
    ]
    assert missing == []


def things_loaded(html: str) -> Iterator[str]:
    """What a browser fetches by itself to show a page."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            value = given.get(_LOADED.get(tag, ""))
            if value and given.get("rel") not in {"next", "prev", "canonical"}:
                found.append(value)

    Reader().feed(html)
    yield from found


def test_the_search_has_every_page_and_works_without_a_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = {")
    assert "limitations.html" in index
    assert "guide-archive.html" in index


@pytest.fixture(scope="module")
def programs() -> ViewerPrograms:
    """With a browser; where Debian or npm is out of reach, the reason of the skip says so."""
    try:
        return install_programs()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because the browser cannot be fetched: {error}")


@pytest.mark.long
def test_a_browser_finds_words_in_pages_that_are_files(site: Path, programs: ViewerPrograms) -> None:
    with open_browser(programs, offline=True) as context:
        page = context.new_page()
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto((site / "reference" / "flow.html").as_uri())

        found = page.locator("a.md-search-result__link[href*=glossary]")
        deadline = time.monotonic() + 120.0
        while not found.count() and time.monotonic() < deadline:
            # What is typed before the page listens is lost; it listens to keys, not to changes of the field.
            page.locator("input[name=query]").fill("")
            page.locator("input[name=query]").press_sequentially("pseudo-label")
            page.wait_for_timeout(2_000)
        assert found.count()

    assert [url for url in requested if not url.startswith(("file:", "about:", "data:"))] == []


def test_the_reference_shows_signatures_and_what_they_raise(site: Path) -> None:
    flow = (site / "reference" / "flow.html").read_text(encoding="utf-8")
    assert 'id="ucseg_runtime.pipeline.segment_volume"' in flow
    assert "UCSEG-E" in flow or "InputError" in flow


def test_tables_of_fields_follow_from_the_schemas(site: Path) -> None:
    page = (site / "model-folder.html").read_text(encoding="utf-8")
    assert "<!-- fields" not in page
    for name in (*Manifest.model_fields, *Tiling.model_fields):
        assert f"<td><code>{name}</code></td>" in page
    assert "| `overlap` | number ≥ 0 < 1 | `0.5` |" in field_table(Tiling)


class Unexplained(BaseModel):
    """A schema.

    Attributes:
        known: Said.
    """

    known: int
    unknown: int


def test_a_field_without_a_meaning_stops_the_build() -> None:
    with pytest.raises(ValueError, match="Unexplained: no line under Attributes for unknown"):
        field_table(Unexplained)


def test_a_link_out_of_the_pages_becomes_a_path(site: Path) -> None:
    assert "image <code>triton</code> of\nthe <code>Dockerfile</code>" in (site / "deploy.html").read_text("utf-8")
