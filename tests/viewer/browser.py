"""A headless Chromium that draws WebGL on the processor and reaches nothing but loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, sync_playwright

from tests.processes import LOOPBACK
from tests.viewer.programs import BrowserPrograms

_ARGUMENTS = (
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {LOOPBACK}",
)


@contextmanager
def open_browser(programs: BrowserPrograms, *, offline: bool = False) -> Iterator[BrowserContext]:
    """Start a browser with an empty profile, and end it with all of its processes at the end of the block.

    An event loop of Playwright runs in this thread as long as the block does, so nothing in it can use asyncio.

    Args:
        programs: Where the browser is.
        offline: Whether even loopback is out of reach; files can be opened all the same.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=programs.chromium, args=list(_ARGUMENTS), env=dict(programs.environment)
        )
        try:
            yield browser.new_context(viewport={"width": 1280, "height": 800}, offline=offline)
        finally:
            browser.close()
