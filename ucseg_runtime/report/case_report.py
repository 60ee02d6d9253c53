"""The page of one case: viewer, figures, decision, model, and what everything was made with.

Everything that is said of the run is taken from its record, so that page and record cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from ucseg_runtime.manifest import ModelSpec, SegmentClass
from ucseg_runtime.report.page import (
    LIBRARY,
    LIBRARY_LICENCES,
    Content,
    data_block,
    document,
    facts,
    node,
    number,
    page_text,
    picture,
    table,
)
from ucseg_runtime.report.pictures import Picture, preview_png, three_planes
from ucseg_runtime.report.viewer_controls import viewer_controls, viewer_data
from ucseg_runtime.report.viewer_volumes import CT_STEP_HU, ViewerVolumes, viewer_volumes
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.upright import upright
from ucseg_runtime.volume import Volume

Record = Mapping[str, Any]  # what becomes JSON

_SHOWN_REASONS = 5
"""The rest is one click away."""

_OUTCOMES = {"accept": "Accept", "review": "Review", "reject": "Reject"}


@dataclass(frozen=True, eq=False)
class ReportParts:
    """What a report holds beside the record; made while image and uncertainty are still in memory.

    Attributes:
        model: What the model says of itself.
        source: What was segmented, by number and kind alone.
        volumes: For the viewer.
        pictures: For print, and where there is no WebGL.
        preview_png: For lists of cases.
    """

    model: ModelSpec
    source: str
    volumes: ViewerVolumes
    pictures: tuple[Picture, ...]
    preview_png: bytes


def report_parts(volume: Volume, segmentation: Segmentation, model: ModelSpec, source: str) -> ReportParts:
    """Take from image and result what a report will show.

    Args:
        volume: The image.
        segmentation: On the same grid, its uncertainty in float32.
        model: What the model says of itself.
        source: How messages name what was segmented.

    Raises:
        OutputError: A picture cannot be encoded.
    """
    shown = upright(volume, segmentation)
    return ReportParts(
        model=model,
        source=source,
        volumes=viewer_volumes(shown),
        pictures=three_planes(shown, segmentation.classes),
        preview_png=preview_png(shown, segmentation.classes),
    )


def case_report(record: Record, outputs: Mapping[str, Mapping[str, object]], parts: ReportParts) -> bytes:
    """The page, HTML in UTF-8; the same for the same arguments.

    Args:
        record: What ``record.json`` will hold; decision and intervals are shown where it has them.
        outputs: Digest and size of the other results.
        parts: The rest.
    """
    body = [
        node("a", "Skip to the figures", href="#segments", class_="skip"),
        node(
            "header",
            node("h1", "Segmentation report"),
            node("p", f"{parts.source[:1].upper()}{parts.source[1:]}"),
            node("p", "Research use only. Not a medical device, not for clinical use.", class_="warning"),
        ),
        node(
            "main",
            *_decision(record.get("decision")),
            _images(parts),
            _segments(record, parts.model.classes),
            *_notes(record),
            _model(parts.model),
            _computation(record["identity"]),
            _provenance(record, outputs),
            _about(parts.volumes),
        ),
        data_block("viewer-data", viewer_data(parts.volumes, parts.model.classes)),
    ]
    script = f"{page_text(LIBRARY)}\n{{\n{page_text('case.js')}}}\n"  # in a block, so that no two names meet
    return document(f"Segmentation report: {parts.source}", body, page_text("page.css"), script)


def swatch(item: SegmentClass) -> Element:
    """The colour of a segment, which is printed too, as backgrounds are not."""
    red, green, blue = item.colour_rgb
    square = node("rect", width="14", height="14", fill=f"rgb({red},{green},{blue})", stroke="#333")
    return node("svg", square, width="14", height="14", aria_hidden="true", class_="swatch")


def _section(name: str, title: str, *content: Element) -> Element:
    return node("section", node("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title")


def _images(parts: ReportParts) -> Element:
    stills = [
        node(
            "figure",
            picture(
                item.png,
                f"{item.title}: on the left the image with each segment outlined in its colour, "
                "on the right the uncertainty from black (0) to yellow (1).",
            ),
            node("figcaption", item.title),
        )
        for item in parts.pictures
    ]
    return _section(
        "images",
        "Image, segments and uncertainty",
        viewer_controls(parts.volumes, [(item.name, swatch(item)) for item in parts.model.classes]),
        node("p", "The viewer needs JavaScript and WebGL 2; these are three planes of it.", class_="still note"),
        node("div", *stills, class_="still stills"),
        node("p", _grid_in_words(parts.volumes), class_="note"),
    )


def _grid_in_words(volumes: ViewerVolumes) -> str:
    shown, source = volumes.geometry, volumes.source_geometry
    grid = f"{_sides(shown.shape)} voxels of {_sides_mm(shown.spacing_mm)} mm"
    where = f"The viewer shows {grid} (left to right, front to back, feet to head), which is the image's own grid"
    if volumes.is_coarser:
        where = (
            f"The viewer shows a coarser grid than the image's: {grid} (left to right, front to back, feet to head) "
            f"instead of {_sides(source.shape)} of {_sides_mm(source.spacing_mm)} mm"
        )
    rounded = f"CT numbers are rounded to {CT_STEP_HU} HU" if volumes.modality == "CT" else "grey values to 256 levels"
    return f"{where}; {rounded}. All figures are those of the image's own grid; the DICOM objects hold it whole."


def _sides(shape_zyx: tuple[int, int, int]) -> str:
    return " × ".join(str(side) for side in reversed(shape_zyx))


def _sides_mm(spacing_zyx: tuple[float, float, float]) -> str:
    return " × ".join(f"{step:.2f}" for step in reversed(spacing_zyx))


def _segments(record: Record, classes: Sequence[SegmentClass]) -> Element:
    measurements = record["measurements"]
    with_interval = any(item.get("volume_interval_ml") for item in measurements)
    with_agreement = any(_is_number(item.get("between_subnet_dice")) for item in measurements)
    header = ["Segment", "Volume, ml", "Largest diameter, mm", "Uncertainty, mean", "Uncertainty, 95 %"]
    if with_interval:
        header.insert(2, "Interval, ml")
    if with_agreement:
        header.append("Subnets agree, Dice")
    rows = []
    for item in measurements:
        colour = next(known for known in classes if known.label == item["label"])
        row = [
            node("th", swatch(colour), item["name"], scope="row"),
            node("td", number(item["volume_ml"], 1)),
            node("td", number(item["largest_diameter_mm"] if item["voxels"] else None, 1)),
            node("td", number(item["mean_uncertainty"], 3)),
            node("td", number(item["uncertainty_p95"], 3)),
        ]
        if with_interval:
            row.insert(2, node("td", *_interval(item.get("volume_interval_ml"))))
        if with_agreement:
            row.append(node("td", number(item.get("between_subnet_dice"), 3)))
        rows.append(row)
    explained = (
        "Uncertainty goes from 0 to 1; what it measures is a matter of the fusion rule (see Model). It is raw, not "
        "calibrated: it ranks voxels, and is no probability of an error. 95 %: what that share of the segment's voxels "
        "does not exceed."
    )
    return _section(
        "segments", "Segments", table("Figures of every segment", header, rows), node("p", explained, class_="note")
    )


def _interval(interval: Sequence[float] | None) -> list[Content]:
    if not interval:
        return [number(None, 1)]
    return [number(interval[0], 1), " – ", number(interval[1], 1)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value


def _decision(decision: Mapping[str, Any] | None) -> list[Element]:
    if decision is None:
        return []
    kind = "from calibration" if decision["calibrated"] else "uncalibrated: built-in limits"
    outcome = node("strong", _OUTCOMES.get(decision["outcome"], decision["outcome"]), class_="outcome")
    score = node("p", outcome, f" ({kind}). Score ", number(decision["score"], 2), ", from 0 = sure to 1 = not at all.")
    rows = [
        [
            node("th", item["check"], scope="row"),
            node("td", number(item["value"], 3)),
            node("td", number(item["limit"], 3)),
            node("td", item["text"]),
        ]
        for item in decision["reasons"]
    ]
    header = ["Check", "Value", "Limit", "What was found"]
    worst, others = rows[:_SHOWN_REASONS], rows[_SHOWN_REASONS:]
    reasons = [table("Reasons of the decision, the worst first", header, worst)] if worst else []
    if others:
        more = table("Further reasons", header, others)
        reasons.append(node("details", node("summary", f"{len(others)} further reasons"), more))
    return [_section("decision", "Decision", score, *reasons)]


def _notes(record: Record) -> list[Element]:
    notes = record["notes"]
    return [_section("notes", "Notes of the run", node("ul", *(node("li", note) for note in notes)))] if notes else []


def _model(model: ModelSpec) -> Element:
    stated = facts(
        [
            ("Name", f"{model.name} {model.version}"),
            ("Licence", model.licence),
            ("Intended use", model.intended_use),
            ("Made for", f"{model.modality}, {model.dim}D"),
            ("Fusion", str(model.fusion)),
            *((f"Provenance: {name}", value) for name, value in sorted(model.provenance.items())),
        ]
    )
    classes = [
        [node("th", swatch(item), item.name, scope="row"), node("td", _code(item)), node("td", str(item.label))]
        for item in model.classes
    ]
    quality = [
        [
            node("th", item.segment, scope="row"),
            node("td", item.data_set),
            node("td", item.output),
            node("td", number(item.dice, 3)),
        ]
        for item in model.quality
    ]
    measured = table("Measured quality", ["Segment", "Data", "Output", "Dice"], quality)
    return _section(
        "model",
        "Model",
        stated,
        table("Classes", ["Class", "Code", "Label"], classes),
        measured if quality else node("p", "The model states no measured quality."),
    )


def _code(item: SegmentClass) -> str:
    parts = [item.type, *([item.modifier] if item.modifier else [])]
    return ", ".join(f"{code.meaning} ({code.scheme} {code.value})" for code in parts)


def _computation(identity: Mapping[str, Any]) -> Element:
    engine = identity["engine"]
    proven = "yes: it passed the model's accuracy gate" if engine["proven"] else "NO: the accuracy gate was skipped"
    return _section(
        "computation",
        "Computed with",
        facts(
            [
                ("Engine", f"{engine['name']} {engine['version']}"),
                ("Precision", engine["precision"]),
                ("Device", engine["device"]),
                ("Proven", proven),
                ("Software", f"ucseg {identity['ucseg_version']}"),
            ]
        ),
    )


def _provenance(record: Record, outputs: Mapping[str, Mapping[str, object]]) -> Element:
    identity = record["identity"]
    items: list[tuple[str, Content]] = [
        ("Study UID", record.get("study_uid", "")),
        ("Series UID", record.get("series_uid", "")),
        ("Images", str(len(record.get("source_sop_uids", ()))) if "source_sop_uids" in record else ""),
        ("Input, SHA-256", record.get("input", {}).get("files_sha256", record.get("image_sha256", ""))),
        ("Model, SHA-256", identity["model_digest"]),
        ("Settings, SHA-256", identity["settings_digest"]),
    ]
    files = [
        [node("th", name, scope="row"), node("td", str(item["size"])), node("td", node("code", str(item["sha256"])))]
        for name, item in outputs.items()
    ]
    return _section(
        "provenance",
        "Provenance",
        facts((name, node("code", value)) for name, value in items if value),
        table("Files written with this report", ["File", "Bytes", "SHA-256"], files),
        node("p", "record.json, written last, holds the digest of this page too.", class_="note"),
    )


def _about(volumes: ViewerVolumes) -> Element:
    says = (
        "This page is one file and asks nothing of any network. It holds no name and no number of a patient, but "
        "images of one: treat it as patient data. Left and right are as radiologists look: R is on the left."
    )
    licences = node("pre", page_text(LIBRARY_LICENCES), tabindex="0")
    return _section(
        "about",
        "About this page",
        node("p", says),
        node("details", node("summary", "Licences of the viewer (NiiVue 0.69.0)"), licences),
    )
