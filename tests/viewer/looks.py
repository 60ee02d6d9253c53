"""What holds of every case that looks right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.phantoms import CtPhantom
from tests.viewer.cases import WRONG_MASKS, Case
from tests.viewer.viewing import Viewer, compare_slice, is_as_expected, look_at


def assert_looks_right(case: Case, viewer: Viewer, folder: Path) -> None:
    """Show a case and see that mask, colours and sides are right, and that wrong masks would have been noticed."""
    expected = case.labels
    assert len(np.unique(expected[list(case.slices)])) >= 4, "at least three organs in all"

    seen = look_at(viewer, case, folder)

    assert seen.image_offset == (0, 0), "the image itself is where the mask is expected"
    assert tuple(side[0] for side in seen.sides) == _sides_of(case.phantom)
    for z, picture in seen.pictures.items():
        shown = compare_slice(case, expected, z, picture)
        assert is_as_expected(shown), f"slice {z}: {shown}"
    for name, change in WRONG_MASKS.items():
        wrong = change(expected)
        as_expected = [is_as_expected(compare_slice(case, wrong, z, picture)) for z, picture in seen.pictures.items()]
        assert not all(as_expected), f"{name} would not be noticed"
    assert {item.name for item in case.classes} <= set(seen.segment_labels)
    assert viewer.hosts == {"127.0.0.1"}, "nothing leaves the machine"


def _sides_of(phantom: CtPhantom) -> tuple[str, str]:
    """The patient's direction that is nearest to the left edge and to the top of an image."""
    row, column = np.reshape(phantom.orientation, (2, 3))
    names = (("R", "L"), ("A", "P"), ("F", "H"))  # along LPS, negative and positive; head is written H, foot F

    def nearest(direction: npt.NDArray[np.float64]) -> str:
        axis = int(np.abs(direction).argmax())
        return names[axis][int(direction[axis] > 0)]

    return nearest(-row), nearest(-column)
