"""All series in both types that OHIF draws, and masks and colours that are wrong; run with UCSEG_TEST_LONG=1."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from tests.viewer.cases import ALL, WRONG_MASKS, Case
from tests.viewer.looks import assert_looks_right
from tests.viewer.viewing import LEAST_IOU, Viewer, compare_slice, is_as_expected, look_at, open_case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.series}-{case.seg_type}")
def test_mask_lies_over_its_tissue_in_the_colours_of_its_segments(case: Case, viewer: Viewer, tmp_path: Path) -> None:
    assert_looks_right(case, viewer, tmp_path)


@pytest.mark.parametrize("mistake", WRONG_MASKS)
def test_wrong_mask_is_seen_as_wrong(mistake: str, viewer: Viewer, tmp_path: Path) -> None:
    case = Case("axial", "binary", change=WRONG_MASKS[mistake], name=mistake)

    seen = look_at(viewer, case, tmp_path)

    for z, picture in seen.pictures.items():
        assert is_as_expected(compare_slice(case, case.labels, z, picture)), "the wrong mask is drawn as it was written"
        assert compare_slice(case, case.phantom.labels, z, picture).worst_iou < LEAST_IOU


def test_label_map_with_the_background_first_gets_the_colours_of_its_neighbours(viewer: Viewer, tmp_path: Path) -> None:
    """Why the writer moves highdicom's Background item: once this fails, OHIF has learnt, and it need not."""

    def put_background_first(seg: FileDataset) -> None:
        *segments, background = seg.SegmentSequence
        assert background.SegmentNumber == 0
        seg.SegmentSequence = [background, *segments]

    case = Case("axial", "labelmap", edit=put_background_first, name="background first")

    seen = look_at(viewer, case, tmp_path)

    for z, picture in seen.pictures.items():
        shown = compare_slice(case, case.labels, z, picture)
        assert not is_as_expected(shown)
        assert shown.worst_colour_error > 50.0


def test_ohif_says_that_it_draws_no_fractional_segmentation(viewer: Viewer, tmp_path: Path) -> None:
    """Why the documentation names BINARY for OHIF: once this fails, it draws them, and they belong to the cases."""
    with open_case(viewer, Case("axial", "fractional"), tmp_path) as ohif:
        said = "Fractional segmentations are not yet supported"
        with ohif.page.expect_console_message(lambda message: said in message.text):
            ohif.double_click_segmentation()
