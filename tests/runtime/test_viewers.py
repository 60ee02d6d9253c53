"""The table of viewers, and which encodings can be had."""

from __future__ import annotations

from typing import get_args

import pytest

from ucseg_runtime.config import SEG_COMPRESSIONS, Compression, SegEncoding, SegType, ViewerName
from ucseg_runtime.viewers import VIEWERS, frame_limit_note, seg_encoding


def test_every_viewer_has_a_line_with_its_evidence() -> None:
    assert set(VIEWERS) == set(get_args(ViewerName))
    assert all(profile.evidence for profile in VIEWERS.values())


@pytest.mark.parametrize("seg_type", get_args(SegType))
@pytest.mark.parametrize("compression", get_args(Compression))
def test_encodings_that_cannot_be_are_refused_with_those_that_can(seg_type: SegType, compression: Compression) -> None:
    if compression in SEG_COMPRESSIONS[seg_type]:
        assert SegEncoding(seg_type, compression).compression == compression
    else:
        with pytest.raises(ValueError, match=f"{seg_type} segmentation cannot .* {compression} .*possible: none"):
            SegEncoding(seg_type, compression)


@pytest.mark.parametrize(("seg_type", "usual"), [("binary", "none"), ("labelmap", "rle"), ("fractional", "rle")])
def test_auto_is_the_usual_compression(seg_type: SegType, usual: Compression) -> None:
    assert SegEncoding(seg_type).compression == usual


def test_what_the_caller_asks_for_goes_before_the_table() -> None:
    assert VIEWERS["legacy-pacs"].encoding == SegEncoding("binary", "none", "keep")

    assert seg_encoding("legacy-pacs") == SegEncoding("binary", "none", "keep")
    assert seg_encoding("legacy-pacs", "labelmap") == SegEncoding("labelmap", "rle", "keep")
    assert seg_encoding("legacy-pacs", compression="jpeg2000") == SegEncoding("binary", "jpeg2000", "keep")
    assert seg_encoding("any", "fractional", "jpeg-ls") == SegEncoding("fractional", "jpeg-ls", "omit")


def test_more_frames_than_a_viewer_shows_are_told() -> None:
    assert frame_limit_note("weasis", 400) == ()
    assert frame_limit_note("any", 100_000) == ()
    (note,) = frame_limit_note("weasis", 401)
    assert "401 frames" in note
    assert "400" in note
