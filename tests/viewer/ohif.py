"""The OHIF viewer, driven as a reader would: open a study, put its segmentation over the image, go to a slice."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np
from playwright.sync_api import Page

from tests.viewer.overlay import Picture

TIMEOUT_MS = 120_000.0

_CT_IS_DRAWN = """() => {
  const shown = window.cornerstone?.getEnabledElements?.()[0]?.viewport;
  return shown?.getImageIds?.().length > 0 && shown.viewportStatus === 'rendered';
}"""
_SEGMENTATION_IS_DRAWN = """() => {
  const state = window.cornerstoneTools.segmentation.state;
  return state.getSegmentations().length > 0
    && window.cornerstone.getEnabledElements().some(
      item => state.getSegmentationRepresentations(item.viewport.id).length > 0);
}"""
_SHOWS = """async (uid) => {
  const shown = window.cornerstone.getEnabledElements()[0].viewport;
  const isIt = id => id.includes(`/instances/${uid}/`);
  if (shown.viewportStatus === 'rendered' && isIt(shown.getCurrentImageId())) return true;
  const index = shown.getImageIds().findIndex(isIt);
  if (index < 0) throw new Error(`the viewport has no image of instance ${uid}`);
  await window.cornerstone.utilities.jumpToSlice(shown.element, { imageIndex: index });
  return false;
}"""
_PICTURE = "() => window.cornerstone.getEnabledElements()[0].viewport.canvas.toDataURL('image/png')"
_SEGMENTS = """() => Object.values(window.cornerstoneTools.segmentation.state.getSegmentations()[0].segments)
  .map(segment => segment.label)"""


@dataclass(frozen=True)
class Ohif:
    """A study that is open in the viewer.

    Attributes:
        page: Where it is.
    """

    page: Page

    def show_segmentation(self) -> None:
        """Double-click the study's only segmentation and wait until it lies over the image."""
        self.double_click_segmentation()
        self.page.wait_for_function(_SEGMENTATION_IS_DRAWN)

    def double_click_segmentation(self) -> None:
        """Ask for the study's only segmentation."""
        self.page.locator('[data-cy="study-browser-thumbnail-no-image"]').dblclick()

    def segment_labels(self) -> tuple[str, ...]:
        """Names of the segments, as the viewer lists them."""
        return tuple(self.page.evaluate(_SEGMENTS))

    def sides(self) -> tuple[str, str]:
        """What the viewer writes at the left edge and at the top: directions of the patient, such as R and A."""
        edges = (self.page.locator(f".{edge}-mid.orientation-marker").first for edge in ("left", "top"))
        left, top = (edge.inner_text() for edge in edges)
        return left, top

    def go_to(self, sop_uid: str) -> None:
        """Show the image of this instance; asks until it is there, since the viewer may still be going elsewhere."""
        self.page.wait_for_function(_SHOWS, arg=sop_uid, polling=250.0)

    def picture(self) -> Picture:
        """What is drawn in the viewport, without the texts around it: RGB, shape (height, width, 3)."""
        png = base64.b64decode(self.page.evaluate(_PICTURE).partition(",")[2])
        bgr = cv2.imdecode(np.frombuffer(png, dtype=np.uint8), cv2.IMREAD_COLOR)
        rgb: Picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        return rgb


def open_study(page: Page, url: str, study_uid: str) -> Ohif:
    """Open a study and wait until its image is drawn.

    Args:
        page: An empty page.
        url: Where the viewer is served.
        study_uid: (0020,000D).
    """
    page.set_default_timeout(TIMEOUT_MS)
    # The guided tour would lie over the page and take the clicks.
    page.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
    page.goto(f"{url}/viewer?StudyInstanceUIDs={study_uid}", wait_until="domcontentloaded")
    page.wait_for_function(_CT_IS_DRAWN)
    return Ohif(page)
