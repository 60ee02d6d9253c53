"""Links of the README and of the pages: to files and headings always, to other hosts only when asked."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
import requests

from tests.docs.documents import PAGES, ROOT, anchors, links

INTERNAL = [(page, link) for page in PAGES for link in links(page) if "://" not in link]
EXTERNAL = sorted({link for page in PAGES for link in links(page) if "://" in link})


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    assert len(INTERNAL) > 100, "links are found"
    broken = [f"{page}: {link}" for page, link in INTERNAL if not leads_somewhere(page, link)]
    assert broken == []


def leads_somewhere(page: str, link: str) -> bool:
    """Whether the file is there, and the heading in it."""
    path, _, anchor = link.partition("#")
    target = os.path.normpath(PurePosixPath(page).parent / path) if path else page
    if anchor:
        return target in PAGES and anchor in anchors(target)
    return (ROOT / target).exists() and not target.startswith("..")


@pytest.mark.parametrize("link", ["missing.md", "errors.md#no-such-heading", "../../outside.md", "#nothing"])
def test_a_link_that_leads_nowhere_is_found(link: str) -> None:
    assert not leads_somewhere("docs/batch.md", link)


@pytest.mark.skipif(os.environ.get("UCSEG_TEST_LINKS") != "1", reason="asks other hosts; UCSEG_TEST_LINKS=1 does it")
@pytest.mark.parametrize("link", EXTERNAL)
def test_a_page_of_another_host_is_there(link: str) -> None:
    answer = requests.get(link, timeout=30.0, headers={"User-Agent": "link check"})
    # Some publishers refuse programs; what they refuse is there.
    assert answer.status_code in {200, 403, 429}, answer.status_code
