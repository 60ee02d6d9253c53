"""Figures of frames and clips, what a header says of sizes and times, and label maps that are held compressed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests.results import CLASSES
from ucseg_runtime.dicom.frame_scales import frame_times_s, pixel_areas_mm2
from ucseg_runtime.label_frames import LabelFrames
from ucseg_runtime.timeline import FrameOrigin, Timeline, figures_of_frame

TWO_CLASSES = CLASSES[:2]


def timeline_of(areas: np.ndarray) -> Timeline:
    labels = np.zeros((2, 4, 5), dtype=np.uint8)
    labels[0, :2, :2] = 1
    labels[1, :3, :3] = 1
    uncertainty = np.full((2, 4, 5), 0.5, dtype=np.float32)
    uncertainty[0, :2, :2], uncertainty[1, :3, :3] = 0.2, 0.3
    figures = tuple(figures_of_frame(*frame, areas, TWO_CLASSES) for frame in zip(labels, uncertainty, strict=True))
    return Timeline((FrameOrigin(1, 1, 0.0), FrameOrigin(1, 2, math.nan)), figures, TWO_CLASSES)


def test_figures_of_known_frames() -> None:
    timeline = timeline_of(np.full((4, 5), 0.25, dtype=np.float32))
    first = timeline.figures[0]
    assert first.mean_uncertainty == pytest.approx((4 * 0.2 + 16 * 0.5) / 20)
    assert first.uncertainty_p95 == pytest.approx(0.5)
    assert (first.segments[0].area_px, first.segments[0].area_mm2) == (4, 1.0)
    assert first.segments[0].mean_uncertainty == pytest.approx(0.2)
    assert (first.segments[1].area_px, first.segments[1].area_mm2) == (0, 0.0)
    assert math.isnan(first.segments[1].mean_uncertainty)


def test_clip_as_a_whole_weighs_pixels_and_not_frames() -> None:
    shown, absent = timeline_of(np.full((4, 5), 0.25, dtype=np.float32)).measurements()
    assert (shown.frames, shown.largest_area_px, shown.largest_area_mm2) == (2, 9, 2.25)
    assert shown.mean_uncertainty == pytest.approx((4 * 0.2 + 9 * 0.3) / 13)
    assert (absent.frames, absent.largest_area_px) == (0, 0)
    assert math.isnan(absent.mean_uncertainty)
    assert math.isnan(absent.largest_area_mm2)


def test_area_of_a_segment_that_leaves_the_calibrated_region_is_not_known() -> None:
    areas = np.full((4, 5), 0.25, dtype=np.float32)
    areas[2:] = np.nan
    timeline = timeline_of(areas)
    assert timeline.figures[0].segments[0].area_mm2 == 1.0
    assert math.isnan(timeline.figures[1].segments[0].area_mm2)
    assert timeline.measurements()[0].largest_area_mm2 == 1.0


def test_table_leaves_out_what_is_not_known() -> None:
    lines = timeline_of(np.full((4, 5), np.nan, dtype=np.float32)).as_csv().splitlines()
    assert lines[0].startswith("frame,file,frame_of_file,time_s,mean_uncertainty,uncertainty_p95,liver area_px,")
    assert lines[1] == "1,1,1,0.0,0.44,0.5,4,,0.2,0,0.0,"
    assert lines[2].startswith("2,1,2,,")


def region(left: int, right: int, delta_cm: float, units: int = 3, kind: int = 1) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = kind, units, units
    item.RegionLocationMinX0, item.RegionLocationMaxX1 = left, right
    item.RegionLocationMinY0, item.RegionLocationMaxY1 = 1, 2
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta_cm, -delta_cm
    return item


def test_regions_count_for_their_own_pixels() -> None:
    header = Dataset()
    header.SequenceOfUltrasoundRegions = [region(0, 1, 0.1), region(3, 4, 0.2), region(0, 4, 0.3, units=4)]
    areas = pixel_areas_mm2(header, 4, 6)
    np.testing.assert_allclose(areas[1:3, :2], 1.0)
    np.testing.assert_allclose(areas[1:3, 3:5], 4.0)
    assert np.isnan(areas[0]).all()
    assert np.isnan(areas[:, 2]).all()


def test_regions_that_disagree_say_nothing_where_they_overlap() -> None:
    header = Dataset()
    header.SequenceOfUltrasoundRegions = [region(0, 3, 0.1), region(2, 5, 0.2), region(0, 0, 0.1)]
    areas = pixel_areas_mm2(header, 4, 6)
    assert np.isnan(areas[1, 2:4]).all()
    np.testing.assert_allclose(areas[1, [0, 1, 4, 5]], [1, 1, 4, 4])


def test_pixel_spacing_counts_for_all_pixels() -> None:
    header = Dataset()
    header.PixelSpacing = [0.5, 0.2]
    np.testing.assert_allclose(pixel_areas_mm2(header, 3, 4), np.full((3, 4), 0.1))
    assert np.isnan(pixel_areas_mm2(Dataset(), 3, 4)).all()


def test_times_come_from_the_step_or_from_the_steps() -> None:
    header = Dataset()
    header.FrameTime = "40"
    assert frame_times_s(header, 3) == pytest.approx((0.0, 0.04, 0.08))
    del header.FrameTime
    header.FrameTimeVector = [0, 10, 30]
    assert frame_times_s(header, 3) == pytest.approx((0.0, 0.01, 0.04))
    assert all(math.isnan(time_s) for time_s in frame_times_s(header, 4)), "one step is missing"
    assert math.isnan(frame_times_s(Dataset(), 1)[0])


def test_label_maps_come_back_as_they_were() -> None:
    rng = np.random.default_rng(1)
    planes = rng.integers(0, 4, size=(3, 7, 9), dtype=np.uint8)
    frames = LabelFrames(7, 9)
    for plane in planes:
        frames.append(plane)
    assert len(frames) == 3
    for index, plane in enumerate(planes):
        np.testing.assert_array_equal(frames[index], plane)
    with pytest.raises(ValueError, match="shape"):
        frames.append(planes[0].T)
