"""Canvas, controls and data of the page's viewer; ``case.js`` makes them work. Every control has a label."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.report.page import node
from ucseg_runtime.report.viewer_volumes import ViewerVolumes

_VIEWS = (
    ("all", "Three planes and 3D"),
    ("axial", "Axial"),
    ("coronal", "Coronal"),
    ("sagittal", "Sagittal"),
    ("render", "3D"),
)
_CT_WINDOWS = (("-160,240", "Soft tissue"), ("-1350,150", "Lung"), ("-450,1050", "Bone"))
_UNCERTAINTY_COLOURS = ("#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4")
"""At 0, ¼, ½, ¾ and 1; those of the map that matplotlib and OpenCV call inferno. ``case.js`` has the same."""


def viewer_controls(volumes: ViewerVolumes, classes: Sequence[tuple[str, Element]]) -> Element:
    """Everything that is shown once the viewer runs.

    Args:
        volumes: What it shows.
        classes: Name and colour of each segment.
    """
    z, y, x = volumes.geometry.shape
    focus_z, focus_y, focus_x = volumes.focus
    canvas = node(
        "canvas",
        "Image, segments and uncertainty",
        id="canvas",
        role="img",
        aria_label="Viewer: image, segments and uncertainty in three planes and 3D; the controls beside it change it",
        aria_describedby="here",
    )
    controls = node(
        "form",
        _group("Layers", *_layers()),
        _group("View", *(_choice(value, text, value == "all") for value, text in _VIEWS)),
        _group(
            "Slices",
            _slider("axial", "Axial, from the feet", z, focus_z + 1),
            _slider("coronal", "Coronal, from the back", y, y - focus_y),
            _slider("sagittal", "Sagittal, from the left", x, x - focus_x),
            _check("crosshair", "Cross-hair", checked=True),
        ),
        *([_group("Grey values", _windows())] if volumes.modality == "CT" else []),
        id="controls",
        aria_label="Viewer",
    )
    here = node("output", id="here", for_="axial coronal sagittal", aria_live="polite")
    screen = node("div", canvas, class_="screen")
    shown = node("div", screen, node("p", here), node("div", *_legend(classes), class_="legend"))
    return node("div", shown, controls, class_="viewer")


def viewer_data(volumes: ViewerVolumes, classes: Sequence[SegmentClass]) -> dict[str, object]:
    """What ``case.js`` reads: the volumes in base64, and what has to be known to draw them; axes in the order x, y, z.

    Args:
        volumes: What is shown.
        classes: Of the segments.
    """
    return {
        "image": base64.b64encode(volumes.image).decode(),
        "labels": base64.b64encode(volumes.labels).decode(),
        "uncertainty": base64.b64encode(volumes.uncertainty).decode(),
        "shape": list(reversed(volumes.geometry.shape)),
        "isCt": volumes.modality == "CT",
        "window": list(volumes.window),
        "classes": [{"label": item.label, "name": item.name, "colour": list(item.colour_rgb)} for item in classes],
    }


def _layers() -> list[Element]:
    return [
        _check("layer-image", "Image", checked=True),
        _check("layer-labels", "Segments", checked=True),
        _strength("labels", "Strength of the segments", 0.5),
        _check("layer-uncertainty", "Uncertainty", checked=False),
        _strength("uncertainty", "Strength of the uncertainty", 0.7),
    ]


def _group(title: str, *content: Element) -> Element:
    return node("fieldset", node("legend", title), *content)


def _check(name: str, text: str, *, checked: bool) -> Element:
    state = {"checked": "checked"} if checked else {}
    return node("label", node("input", type="checkbox", id=name, **state), f" {text}")


def _choice(value: str, text: str, checked: bool) -> Element:
    state = {"checked": "checked"} if checked else {}
    return node("label", node("input", type="radio", name="view", value=value, **state), f" {text}")


def _strength(name: str, text: str, value: float) -> Element:
    slider = node("input", type="range", id=f"strength-{name}", min="0.1", max="1", step="0.1", value=str(value))
    return node("label", f"{text} ", slider)


def _slider(name: str, text: str, count: int, value: int) -> Element:
    slider = node("input", type="range", id=name, min="1", max=str(count), step="1", value=str(value))
    at = node("output", f"{value} of {count}", id=f"{name}-at", for_=name)
    return node("label", f"{text} ", at, slider, for_=name)  # or the label would be that of the output, which is first


def _windows() -> Element:
    return node("label", "Window ", node("select", *(node("option", t, value=v) for v, t in _CT_WINDOWS), id="window"))


def _legend(classes: Sequence[tuple[str, Element]]) -> list[Element]:
    segments = node("ul", *(node("li", swatch, name) for name, swatch in classes), aria_label="Colours of the segments")
    last = len(_UNCERTAINTY_COLOURS) - 1
    stops = (node("stop", offset=str(i / last), stop_color=colour) for i, colour in enumerate(_UNCERTAINTY_COLOURS))
    ramp = node("linearGradient", *stops, id="ramp")
    bar = node("rect", width="120", height="12", fill="url(#ramp)", stroke="#777")
    picture = node("svg", node("defs", ramp), bar, width="120", height="12", aria_hidden="true")
    return [segments, node("p", "Uncertainty 0 ", picture, " 1 = least sure; below 0.1 it is not drawn")]
