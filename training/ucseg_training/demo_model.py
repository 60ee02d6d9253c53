"""What the demo model is: classes, preprocessing, tiles and sizes; the same values stand in its manifest."""

from __future__ import annotations

from ucseg_runtime.manifest import Code, PiecewiseLinear, Postprocessing, Preprocessing, SegmentClass, Tiling
from ucseg_training.nets import TrioConfig

ANATOMICAL_STRUCTURE = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
ORGAN = Code(value="113343008", scheme="SCT", meaning="Organ")
BOTH_SIDES = Code(value="51440002", scheme="SCT", meaning="Right and left")


def _segment(
    label: int, name: str, code: str, meaning: str, colour_rgb: tuple[int, int, int], modifier: Code | None = None
) -> SegmentClass:
    return SegmentClass(
        label=label,
        name=name,
        category=ANATOMICAL_STRUCTURE,
        type=Code(value=code, scheme="SCT", meaning=meaning),
        modifier=modifier,
        colour_rgb=colour_rgb,
    )


CLASSES = (
    _segment(1, "lungs", "39607008", "Lung", (120, 190, 255), BOTH_SIDES),
    _segment(2, "liver", "10200004", "Liver", (221, 130, 101)),
    _segment(3, "vertebrae", "51282000", "Vertebra", (255, 240, 170)),
    _segment(4, "aorta", "15825003", "Aorta", (224, 60, 60)),
    _segment(5, "heart", "80891009", "Heart", (206, 110, 150)),
)
LABELS = {item.name: item.label for item in CLASSES}

PREPROCESSING = Preprocessing(
    spacing_mm=(3.0, 3.0, 3.0),
    # One line over the whole range would leave 2 % of it for the contrast between organs.
    intensity=PiecewiseLinear(knots=((-1000.0, -1.6), (-200.0, -1.0), (250.0, 1.5), (1000.0, 2.4))),
    padding_value=-1000.0,
)
TILING = Tiling(tile_shape=(64, 80, 80), overlap=0.5, weighting="gaussian")
POSTPROCESSING = Postprocessing(
    largest_component=(LABELS["liver"], LABELS["heart"]),
    smallest_component_ml={LABELS["lungs"]: 20.0, LABELS["vertebrae"]: 2.0, LABELS["aorta"]: 2.0},
)

TRIO = TrioConfig(
    dim=3,
    in_channels=1,
    num_classes=len(CLASSES) + 1,
    tile_shape=TILING.tile_shape,
    unet_width=8,
    vnet_width=8,
    token_side=8,
    attention_width=32,
    heads=4,
    head_dim=16,
    mlp_hidden=128,
    head_widths=(8, 16, 32, 16, 8),
    activation="softmax",
)
