"""The page of a case in a browser without a network: it draws what NumPy says, and its controls do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import BrowserContext

from tests import results
from tests.phantoms import BODY_HU
from tests.report_phantom import DECISION, PHANTOM, model, record, report, segmentation
from tests.viewer.browser import open_browser
from tests.viewer.programs import BrowserPrograms
from tests.viewer.report_page import ReportPage, Shot, fitted, open_report
from ucseg_runtime.json_text import json_text
from ucseg_runtime.publish import PAGE, RECORD, THUMBNAIL
from ucseg_runtime.report.batch_report import INDEX, write_index
from ucseg_runtime.upright import SOFT_TISSUE_HU

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"
SPLEEN = 2
PNG = bytes(cv2.imencode(".png", np.zeros((4, 4, 3), dtype=np.uint8))[1])
COLOURS = {item.label: np.array(item.colour_rgb) for item in results.CLASSES}

Plane = npt.NDArray[np.float32]
PLANES = {"axial": 17, "coronal": 20, "sagittal": 20}
"""As the sliders count them: from the feet, from the back, from the left."""


@pytest.fixture(scope="module")
def context(browser_programs: BrowserPrograms) -> Iterator[BrowserContext]:
    with open_browser(browser_programs, offline=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("report") / "report.html"
    written.write_bytes(report(decision=DECISION))
    return written


@pytest.fixture(scope="module")
def opened(context: BrowserContext, path: Path) -> Iterator[ReportPage]:
    """The page, as the tests before have left it."""
    with open_report(context, path) as page:
        yield page


def test_page_runs_without_a_complaint_and_asks_for_nothing(context: BrowserContext, path: Path) -> None:
    with open_report(context, path) as page:
        assert page.state == "ready"
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
        assert page.page.locator(".still:visible").count() == 0


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_those_that_numpy_cuts(plane: str, opened: ReportPage) -> None:
    show(opened, plane, labels=False)
    low, high = SOFT_TISSUE_HU
    voxels = (np.clip(cut(PHANTOM.hu, plane), low, high) - low) / (high - low) * 255.0

    shot = opened.shot()

    assert np.abs(shot.astype(int) - shot.mean(axis=-1, keepdims=True)).max() <= 1.0, "grey"
    right = difference(shot, voxels, plane)
    assert right < 3.0
    for wrong in (voxels[::-1], voxels[:, ::-1], np.roll(voxels, 2, axis=0), np.roll(voxels, 2, axis=1)):
        assert difference(shot, np.ascontiguousarray(wrong), plane) > 2.0 * right


@pytest.mark.parametrize("plane", PLANES)
def test_segments_lie_in_their_colours_where_they_are(plane: str, opened: ReportPage) -> None:
    show(opened, plane, labels=True)
    labels = cut(PHANTOM.labels, plane)
    seen = set()

    shot = opened.shot()

    for label in np.unique(labels[labels > 0]).astype(int):
        inside = core(labels == label, plane, shot)
        if inside.any():
            assert np.abs(shot[inside].astype(int) - COLOURS[label]).max() <= 1
            seen.add(label)
    outside = core(labels == 0, plane, shot)
    assert np.abs(shot[outside].astype(int) - shot[outside].mean(axis=-1, keepdims=True)).max() <= 1.0, "grey"
    assert len(seen) >= 2, "the plane shows what it is chosen for"


def test_layers_are_switched_one_by_one(opened: ReportPage) -> None:
    show(opened, "axial", labels=False)
    plain = opened.shot()
    labels, hu = cut(PHANTOM.labels, "axial"), cut(PHANTOM.hu, "axial")
    spleen, liver, body = (
        core(mask, "axial", plain) for mask in (labels == SPLEEN, labels == 1, (labels == 0) & (hu >= BODY_HU))
    )
    assert spleen.any()
    assert liver.any()
    assert body.any()

    opened.layer("uncertainty", on=True, strength=1.0)
    uncertain = opened.shot()
    opened.layer("uncertainty", on=False)
    without = opened.shot()
    opened.layer("image", on=False)
    opened.layer("labels", on=True)
    alone = opened.shot()
    opened.layer("image", on=True)

    assert np.abs(uncertain[spleen].astype(int) - (252, 255, 164)).max() <= 6, "1 is yellow"
    assert np.abs(uncertain[liver].astype(int) - plain[liver]).max() <= 3, "0 is not drawn"
    assert (without == plain).all()
    assert alone[spleen].max() > 50
    assert plain[body].mean() > 50
    assert alone[body].max() == 0, "without the image there is nothing beside the segments"


def test_window_changes_the_grey_values(opened: ReportPage) -> None:
    show(opened, "axial", labels=False)
    soft = opened.shot()

    opened.page.select_option("#window", label="Lung")
    lung = opened.shot()
    opened.page.select_option("#window", label="Soft tissue")

    assert lung.mean() > soft.mean() + 10.0
    assert (opened.shot() == soft).all()


def test_keyboard_is_enough(opened: ReportPage) -> None:
    show(opened, "axial", labels=True)
    page = opened.page
    with_segments = opened.shot()

    page.locator("#layer-image").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    without = opened.shot()
    page.keyboard.press("Space")
    again = opened.shot()
    page.locator("#axial").focus()
    page.keyboard.press("ArrowRight")
    moved = opened.shot()

    assert (without != with_segments).any()
    assert (again == with_segments).all()
    assert page.locator("#axial-at").inner_text() == f"{PLANES['axial'] + 1} of {PHANTOM.shape[0]}"
    assert (moved != with_segments).any()
    page.locator("input[name=view][value=axial]").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("input[name=view][value=coronal]").is_checked()
    assert (opened.shot() != moved).any()


def test_page_tells_what_lies_at_the_cross_hair(opened: ReportPage) -> None:
    z, y, x = (int(place) for place in np.argwhere(PHANTOM.labels == SPLEEN)[50])
    for plane, slice_number in zip(PLANES, (z + 1, PHANTOM.shape[1] - y, PHANTOM.shape[2] - x), strict=True):
        opened.go_to(plane, slice_number)

    said = opened.page.locator("#here").inner_text()

    hu = 4 * round(PHANTOM.hu[z, y, x] / 4)
    assert said == f"At the cross-hair: {hu} HU, spleen, uncertainty 1.00"


def test_everything_has_a_name_and_enough_contrast(opened: ReportPage) -> None:
    said = opened.page.evaluate(_ACCESSIBILITY)

    assert said["lang"] == "en"
    assert said["unnamed"] == []
    assert said["headings"] == sorted(said["headings"]), "no level follows a deeper one but the next section"
    assert said["headings"].count(1) == 1
    assert said["faint"] == []


def test_print_has_three_planes_and_no_viewer(opened: ReportPage) -> None:
    opened.page.emulate_media(media="print")
    try:
        assert opened.page.locator(".stills img:visible").count() == 3
        assert not opened.page.locator("#canvas").is_visible()
        assert opened.page.locator("#segments table").is_visible()
    finally:
        opened.page.emulate_media(media="screen")


def test_page_without_webgl_has_the_pictures(context: BrowserContext, path: Path) -> None:
    script = "HTMLCanvasElement.prototype.getContext = () => null"
    with context.new_page() as page:
        page.add_init_script(script)
        page.goto(path.as_uri())
        page.wait_for_function("() => document.documentElement.dataset.viewer === 'unavailable'")

        assert page.locator(".stills img:visible").count() == 3
        assert not page.locator("#canvas").is_visible()


def test_script_in_a_text_does_nothing(context: BrowserContext, tmp_path: Path) -> None:
    classes = (results.CLASSES[0].model_copy(update={"name": HOSTILE}), *results.CLASSES[1:])
    (tmp_path / "report.html").write_bytes(report(spec=model(intended_use=HOSTILE, classes=classes), notes=[HOSTILE]))

    with open_report(context, tmp_path / "report.html") as page:
        assert page.state == "ready"
        assert page.page.evaluate("() => window.owned") is None
        assert page.complaints == []
        assert HOSTILE in page.page.locator("#notes").inner_text()


def test_page_of_a_batch_leads_to_its_cases(context: BrowserContext, path: Path, tmp_path: Path) -> None:
    for number, outcome in enumerate(("accept", "review")):
        case = tmp_path / "study" / f"series #{number}"
        case.mkdir(parents=True)
        (case / PAGE).write_bytes(path.read_bytes())
        decision = {**DECISION, "outcome": outcome}
        (case / RECORD).write_text(json_text(record(segmentation(), decision=decision)))
        (case / THUMBNAIL).write_bytes(PNG)
    (tmp_path / "failures.csv").write_text(f"study,series,state,code,reason\nstudy,x,failed,UCSEG-E106,{HOSTILE}\n")

    with context.new_page() as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(write_index(tmp_path).as_uri())
        said = page.evaluate(_ACCESSIBILITY)
        first = page.locator(".cases tbody tr").first
        assert "review" in first.inner_text()
        assert page.locator(".failed").inner_text().count("UCSEG-E106") == 1
        assert page.evaluate("() => window.owned") is None
        assert first.locator("img").evaluate("image => image.naturalWidth") == 4
        first.get_by_role("link", name="study/series #1", exact=True).press("Enter")
        page.wait_for_selector("#segments table")

    assert (said["lang"], said["unnamed"], said["faint"]) == ("en", [], [])
    pages = [tmp_path / INDEX, tmp_path / "study" / "series #1" / PAGE]
    assert [url for url in requests if not url.startswith("data:")] == [item.as_uri() for item in pages]


def show(opened: ReportPage, plane: str, *, labels: bool) -> None:
    """One plane, image and segments alone, the latter opaque."""
    opened.show_plane(plane, PLANES[plane])
    opened.layer("image", on=True)
    opened.layer("labels", on=labels, strength=1.0)
    opened.layer("uncertainty", on=False)


def cut(volume: npt.NDArray[np.generic], plane: str) -> Plane:
    """The slice that is shown, as radiologists look: R or A on the left, A or H above."""
    z, y, x = volume.shape
    slices = {
        "axial": volume[PLANES["axial"] - 1],
        "coronal": volume[::-1, y - PLANES["coronal"]],
        "sagittal": volume[::-1, :, x - PLANES["sagittal"]],
    }
    assert z == PHANTOM.shape[0]
    return np.ascontiguousarray(slices[plane], dtype=np.float32)


def pixel_mm(plane: str) -> tuple[float, float]:
    dz, dy, dx = PHANTOM.spacing_mm
    return {"axial": (dy, dx), "coronal": (dz, dx), "sagittal": (dz, dy)}[plane]


def core(mask: npt.NDArray[np.bool_], plane: str, shot: Shot) -> npt.NDArray[np.bool_]:
    """Pixels of a picture that are well within a mask: a voxel away from its border, and not on the picture's own."""
    height, width = shot.shape[:2]
    drawn = (fitted(mask.astype(np.float32), pixel_mm(plane), (height, width)) > 0.5).astype(np.uint8)
    voxel_px = round(max(pixel_mm(plane)) * height / (len(mask) * pixel_mm(plane)[0]))
    framed = np.zeros_like(drawn)
    framed[3:-3, 3:-3] = drawn[3:-3, 3:-3]
    return cv2.erode(framed, np.ones((2 * voxel_px + 1, 2 * voxel_px + 1), np.uint8)).astype(bool)


def difference(shot: Shot, voxels: Plane, plane: str) -> float:
    """Mean difference of the grey values, of 255, where the slice has to be."""
    expected = fitted(np.ascontiguousarray(voxels, dtype=np.float32), pixel_mm(plane), shot.shape[:2])
    there = ~np.isnan(expected)
    return float(np.abs(shot[..., 0][there] - expected[there]).mean())


_ACCESSIBILITY = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(at).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const ratio = (element) => {
    const pair = [parts(getComputedStyle(element).color).slice(0, 3), background(element)].map(luminance);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  const isRead = (e) => e.checkVisibility() && !['SCRIPT', 'CANVAS'].includes(e.tagName)
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const texts = [...document.body.querySelectorAll('*')].filter(isRead);
  const controls = [...document.querySelectorAll('input, select, button')];
  const named = [...document.querySelectorAll('img, canvas, table, section, form, fieldset')];
  const isNamed = (e) => e.alt || e.ariaLabel || e.getAttribute('aria-labelledby') || e.caption
    || e.querySelector('legend');
  return {
    lang: document.documentElement.lang,
    unnamed: [...controls.filter(e => !e.labels?.length), ...named.filter(e => !isNamed(e))].map(e => e.outerHTML),
    headings: [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1])),
    faint: texts.filter(e => ratio(e) < 4.5).map(e => e.textContent),
  };
}"""
