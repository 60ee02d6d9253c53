"""A look at a case: the series and its segmentation go to Orthanc, OHIF draws them, pictures come back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext

from tests.orthanc import Pacs, running_pacs
from tests.processes import LOOPBACK
from tests.viewer.browser import open_browser
from tests.viewer.cases import Case
from tests.viewer.ohif import Ohif, open_study
from tests.viewer.overlay import Comparison, Labels, Picture, compare, fitted, image_offset
from tests.viewer.programs import ViewerPrograms
from tests.viewer.web_server import serving_ohif

LEAST_IOU = 0.98
LARGEST_COLOUR_ERROR = 4.0
DRAWN_TIMEOUT_S = 20.0

Look = TypeVar("Look")


@dataclass(frozen=True)
class Viewer:
    """Everything that runs.

    Attributes:
        pacs: Where studies are stored.
        url: Where OHIF is served.
        context: Of the browser.
        hosts: Of all requests that its pages have made.
    """

    pacs: Pacs
    url: str
    context: BrowserContext
    hosts: set[str]


@dataclass(frozen=True)
class Seen:
    """What the viewer showed of a case.

    Attributes:
        image_offset: By how many voxels (y, x) the image itself lies beside its place before the mask is over it.
        pictures: By z index, with the mask.
        segment_labels: As the viewer lists them.
        sides: What it writes at the left edge and at the top.
    """

    image_offset: tuple[int, int]
    pictures: Mapping[int, Picture]
    segment_labels: tuple[str, ...]
    sides: tuple[str, str]


@contextmanager
def open_viewer(programs: ViewerPrograms) -> Iterator[Viewer]:
    """Run an empty Orthanc, OHIF and a browser for the length of the block."""
    with (
        tempfile.TemporaryDirectory(prefix="ucseg-viewer-") as folder,
        running_pacs(programs, Path(folder)) as pacs,
        serving_ohif(programs.ohif, pacs) as url,
        open_browser(programs) as context,
    ):
        hosts: set[str] = set()
        context.on(
            "request", lambda request: hosts.add(urlsplit(request.url).hostname or LOOPBACK)
        )  # none in data URLs
        yield Viewer(pacs, url, context, hosts)


@contextmanager
def open_case(viewer: Viewer, case: Case, folder: Path) -> Iterator[Ohif]:
    """Write a case below `folder`, store it and open its study."""
    viewer.pacs.store(case.write(folder))
    with viewer.context.new_page() as page:
        yield open_study(page, viewer.url, case.phantom.study_uid)


def look_at(viewer: Viewer, case: Case, folder: Path) -> Seen:
    """Show a case, wait at each of its slices until what was written is drawn or the time is over.

    Args:
        viewer: What runs.
        case: What is shown.
        folder: Where its files are written.
    """
    with open_case(viewer, case, folder) as ohif:
        offset = _image_offset_when_drawn(ohif, case)
        ohif.show_segmentation()
        pictures = {z: picture_when_drawn(ohif, case, z) for z in case.slices}
        return Seen(offset, pictures, ohif.segment_labels(), ohif.sides())


def expected_overlay(case: Case, labels: Labels, z: int, picture: Picture) -> Labels:
    """What a slice of `labels` looks like in a picture of the size of `picture`."""
    return fitted(labels[z], case.phantom.spacing_mm[1:], picture.shape[:2])


def compare_slice(case: Case, labels: Labels, z: int, picture: Picture) -> Comparison:
    """A picture of a slice against labels, shape (z, y, x)."""
    return compare(picture, expected_overlay(case, labels, z, picture), case.classes)


def is_as_expected(comparison: Comparison) -> bool:
    """Whether the mask lies where it must and every segment is in its colour."""
    return comparison.worst_iou >= LEAST_IOU and comparison.worst_colour_error <= LARGEST_COLOUR_ERROR


def _image_offset_when_drawn(ohif: Ohif, case: Case) -> tuple[int, int]:
    z = case.slices[1]

    def look() -> tuple[int, int]:
        ohif.go_to(case.phantom.sop_uid(z))
        return image_offset(ohif.picture(), case.phantom.hu[z], case.phantom.spacing_mm[1:])

    return _last_look(look, lambda offset: offset == (0, 0))


def picture_when_drawn(ohif: Ohif, case: Case, z: int) -> Picture:
    """Go to a slice and take its picture as soon as it shows what was written, or when the time is over."""

    def look() -> Picture:
        ohif.go_to(case.phantom.sop_uid(z))
        return ohif.picture()

    return _last_look(look, lambda picture: is_as_expected(compare_slice(case, case.labels, z, picture)))


def _last_look(look: Callable[[], Look], is_right: Callable[[Look], bool]) -> Look:
    """Look until it is right or the time is over, since a viewer draws in steps."""
    deadline = time.monotonic() + DRAWN_TIMEOUT_S
    while True:
        found = look()
        if is_right(found) or time.monotonic() > deadline:
            return found
