"""The box around the patient: keeps all of the body, leaves air and table out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucseg_runtime.body import body_box

AIR_HU, TISSUE_HU = -1000.0, 40.0
SPACING_MM = (3.0, 3.0, 3.0)
SHAPE = (20, 120, 130)
MARGIN_VOXELS = 5


def air(shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.float32]:
    return np.full(shape, AIR_HU, dtype=np.float32)


def add_ellipse(voxels: npt.NDArray[np.float32], centre: tuple[float, float], radii: tuple[float, float]) -> None:
    y, x = np.ogrid[: voxels.shape[1], : voxels.shape[2]]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1.0
    voxels[:, inside] = TISSUE_HU


def assert_just_holds(box: Sequence[slice], body: list[tuple[int, int]]) -> None:
    """The margin is counted from where the body is thick; at its tips one or two voxels of it go."""
    for (start, stop), (first, end) in zip(sides(box), body, strict=True):
        assert first - MARGIN_VOXELS <= start <= first - MARGIN_VOXELS + 2
        assert end + MARGIN_VOXELS - 2 <= stop <= end + MARGIN_VOXELS


def sides(box: Sequence[slice]) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in box]


def test_box_holds_the_body_with_its_margin_and_not_the_table() -> None:
    voxels = air()
    add_ellipse(voxels, (50, 65), (20, 30))
    voxels[:, 100:102, 10:120] = 200.0  # a shell of 6 mm, 90 mm behind the patient
    z, y, x = body_box(voxels, SPACING_MM)
    assert z == slice(0, 20)
    assert_just_holds((y, x), [(30, 71), (35, 96)])


def test_table_that_the_patient_lies_on_does_not_widen_the_box() -> None:
    voxels = air()
    add_ellipse(voxels, (50, 65), (20, 30))
    voxels[:, 70:72, :] = 200.0
    assert_just_holds(body_box(voxels, SPACING_MM)[2:], [(35, 96)])


def test_arms_beside_the_body_belong_to_the_patient_and_cables_do_not() -> None:
    voxels = air()
    add_ellipse(voxels, (60, 65), (20, 25))
    add_ellipse(voxels, (60, 25), (6, 6))
    add_ellipse(voxels, (10, 120), (1.5, 1.5))
    assert_just_holds(body_box(voxels, SPACING_MM)[1:], [(40, 81), (19, 91)])


def test_body_that_touches_the_rim_is_kept_up_to_the_rim() -> None:
    voxels = air()
    voxels[:, 40:, 30:90] = TISSUE_HU
    assert sides(body_box(voxels, SPACING_MM)) == [(0, 20), (40 - MARGIN_VOXELS, 120), (30 - MARGIN_VOXELS, 95)]


@pytest.mark.parametrize("content_hu", [AIR_HU, TISSUE_HU])
def test_volume_of_one_kind_is_looked_at_whole(content_hu: float) -> None:
    voxels = np.full(SHAPE, content_hu, dtype=np.float32)
    assert sides(body_box(voxels, SPACING_MM)) == [(0, side) for side in SHAPE]


def test_single_slice_has_a_box() -> None:
    voxels = air((1, 120, 130))
    add_ellipse(voxels, (50, 65), (20, 30))
    assert sides(body_box(voxels, (5.0, 3.0, 3.0)))[0] == (0, 1)


@settings(deadline=None, max_examples=60)
@given(
    spacing_mm=st.floats(0.5, 5.0),
    thickness_mm=st.floats(0.5, 8.0),
    radii_mm=st.tuples(st.floats(40.0, 90.0), st.floats(40.0, 90.0)),
    off_mm=st.tuples(st.floats(-80.0, 80.0), st.floats(-80.0, 80.0)),
)
def test_every_voxel_of_a_convex_body_is_inside_whatever_the_spacing(
    spacing_mm: float, thickness_mm: float, radii_mm: tuple[float, float], off_mm: tuple[float, float]
) -> None:
    side = int(360 / spacing_mm)
    voxels = air((4, side, side))
    centre = (side / 2 + off_mm[0] / spacing_mm, side / 2 + off_mm[1] / spacing_mm)
    add_ellipse(voxels, centre, (radii_mm[0] / spacing_mm, radii_mm[1] / spacing_mm))
    outside = voxels > AIR_HU
    assert outside.any()
    outside[body_box(voxels, (thickness_mm, spacing_mm, spacing_mm))] = False
    assert not outside.any()
