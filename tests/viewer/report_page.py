"""The page of a case in a browser, used as its reader does: by its controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from playwright.sync_api import BrowserContext, Page

from ucseg_runtime.arrays import Float32Array

Shot = npt.NDArray[np.uint8]

TIMEOUT_MS = 60_000.0


@dataclass(frozen=True)
class ReportPage:
    """A page that is open.

    Attributes:
        page: Where.
        requests: URLs that it asked for.
        complaints: Errors and warnings of the browser's console, and what was thrown.
    """

    page: Page
    requests: list[str]
    complaints: list[str]

    @property
    def state(self) -> str:
        """Of the viewer."""
        return self.page.evaluate("() => document.documentElement.dataset.viewer || ''") or ""

    def show_plane(self, plane: str, slice_number: int) -> None:
        """Show one plane alone, without the cross-hair."""
        self.page.check(f"input[name=view][value={plane}]")
        self.page.uncheck("#crosshair")
        self.go_to(plane, slice_number)

    def go_to(self, plane: str, slice_number: int) -> None:
        """Move the slider of a plane."""
        self.page.locator(f"#{plane}").fill(str(slice_number))

    def layer(self, name: str, *, on: bool, strength: float | None = None) -> None:
        """Switch a layer."""
        self.page.set_checked(f"#layer-{name}", on)
        if strength is not None:
            self.page.locator(f"#strength-{name}").fill(str(strength))

    def shot(self) -> Shot:
        """What the viewer draws, RGB, shape (height, width, 3)."""
        encoded = np.frombuffer(self.page.locator("#canvas").screenshot(), dtype=np.uint8)
        return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), dtype=np.uint8)


@contextmanager
def open_report(context: BrowserContext, path: Path) -> Iterator[ReportPage]:
    """Open a file, and wait until its viewer runs or has given up."""
    with context.new_page() as page:
        page.set_default_timeout(TIMEOUT_MS)
        opened = ReportPage(page, [], [])
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: opened.complaints.append(said.text) if said.type in {"error", "warning"} else None,
        )
        page.goto(path.as_uri())
        page.wait_for_function("() => ['ready', 'unavailable'].includes(document.documentElement.dataset.viewer)")
        yield opened


def fitted(plane: Float32Array, pixel_mm: tuple[float, float], canvas: tuple[int, int]) -> Float32Array:
    """A plane as large as it fits into a canvas, in its middle, linear between voxels; NaN beside it.

    Args:
        plane: Values, shape (rows, columns).
        pixel_mm: Height and width of a voxel.
        canvas: Height and width in pixels.
    """
    extent_mm = np.array(plane.shape) * pixel_mm
    scale = float((np.array(canvas) / extent_mm).min())
    height, width = (extent_mm * scale).round().astype(int).tolist()
    drawn = np.full(canvas, np.nan, dtype=np.float32)
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    drawn[top : top + height, left : left + width] = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
    return drawn
