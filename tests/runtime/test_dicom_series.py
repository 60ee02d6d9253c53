"""Scanning, grouping, choosing and placing DICOM series."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset

from tests.bad_inputs import moved, setting
from tests.phantoms import (
    OBLIQUE,
    PHI_CANARIES,
    CtPhantom,
    all_orientations,
    derived_uid,
    edit_file,
    write_ct_series,
)
from ucseg_runtime.config import InputOptions
from ucseg_runtime.dicom.checks import require_instances
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import Scan, Series, scan
from ucseg_runtime.dicom.stacking import acquired_grid, volume_geometry
from ucseg_runtime.errors import GeometryError, InputError, SeriesSelectionError, SpacingError
from ucseg_runtime.slice_stack import SliceStack

SMALL = CtPhantom(shape=(4, 12, 10))


def only_series(folder: Path) -> Series:
    (series,) = scan(folder).series
    return series


# Scanning


def test_scan_finds_series_in_nested_folders_beside_other_files(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "notes.txt").write_text("canary")
    (tmp_path / "a" / "thumbs.dcm").write_bytes(b"\xff\xd8\xff")

    found = scan(tmp_path)

    assert [series.number_of_instances for series in found.series] == [10]
    assert [(item.ordinal, item.total, item.code) for item in found.skipped] == [
        (1, 12, "UCSEG-E101"),
        (2, 12, "UCSEG-E101"),
    ]


def test_scan_reads_a_single_file(tmp_path: Path) -> None:
    paths = write_ct_series(tmp_path)

    assert only_series(paths[0]).instances[0].sop_instance_uid == CtPhantom().sop_uid(0)


def test_scan_of_a_link_to_a_folder_follows_it_but_no_link_inside(tmp_path: Path) -> None:
    paths = write_ct_series(tmp_path / "real")
    (tmp_path / "real" / "again.dcm").symlink_to(paths[0])
    (tmp_path / "link").symlink_to(tmp_path / "real")

    found = scan(tmp_path / "link")

    assert [series.number_of_instances for series in found.series] == [10]
    assert [(item.code, item.reason) for item in found.skipped] == [("UCSEG-E102", "is a link, not a regular file")]


def test_scan_never_opens_a_pipe_among_images(tmp_path: Path) -> None:
    write_ct_series(tmp_path)
    os.mkfifo(tmp_path / "pipe.dcm")

    found = scan(tmp_path)

    assert [series.number_of_instances for series in found.series] == [10]
    assert [item.code for item in found.skipped] == ["UCSEG-E102"]


def test_scan_skips_files_over_the_size_limit(tmp_path: Path) -> None:
    paths = write_ct_series(tmp_path)
    with paths[0].open("ab") as stream:
        stream.truncate(1_000_000)

    found = scan(tmp_path, max_file_bytes=999_999)

    assert [item.reason for item in found.skipped] == ["has 1000000 bytes; at most 999999 are read"]


def test_scan_of_a_missing_input_does_not_name_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        scan(tmp_path / "canary-absent")

    assert caught.value.code == "UCSEG-E102"
    assert "canary" not in str(caught.value)


def test_bad_files_do_not_hide_a_good_series(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "good")
    for name, length in (("a", 0), ("b", 200), ("c", 700)):
        content = next((tmp_path / "good").iterdir()).read_bytes()
        (tmp_path / name).write_bytes(content[:length])

    found = scan(tmp_path)

    assert select_series(found, "CT").chosen.number_of_instances == 10
    assert [item.code for item in found.skipped] == ["UCSEG-E101", "UCSEG-E103", "UCSEG-E103"]


def test_scan_keeps_values_that_pydicom_would_print_to_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A malformed UID makes pydicom warn and log with the value."""
    paths = write_ct_series(tmp_path)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content.replace(CtPhantom().study_uid[:8].encode(), b"canary51"))
    caplog.set_level(logging.DEBUG)
    with pytest.warns(UserWarning, match="canary51"):
        str(pydicom.dcmread(paths[0]).StudyInstanceUID)  # the premise: pydicom alone does print it
    caplog.clear()

    scan(tmp_path)

    said = (caplog.text + str(capfd.readouterr())).lower()
    assert not [canary for canary in PHI_CANARIES if canary in said]
    assert not logging.getLogger("pydicom").disabled


def test_objects_show_no_path_and_no_patient_when_printed(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "canary")

    shown = repr(scan(tmp_path)).lower()

    assert not [canary for canary in PHI_CANARIES if canary in shown]


def test_pydicom_test_files_are_read_or_skipped_without_any_other_error() -> None:
    folder = Path(get_testdata_file("CT_small.dcm")).parent

    found = scan(folder)

    total = len(found.skipped) + sum(series.number_of_instances for series in found.series)
    assert total > 100
    assert {item.code for item in found.skipped} >= {"UCSEG-E101", "UCSEG-E103", "UCSEG-E105"}
    for series in found.series:
        with pytest.raises(InputError):  # none of these samples is a volume of this modality
            select_series(Scan((series,), ()), "XA")


# Grouping


def test_series_of_one_study_are_told_apart(tmp_path: Path) -> None:
    write_ct_series(tmp_path, replace(SMALL, series_number=7), prefix="b")
    write_ct_series(tmp_path, replace(SMALL, series_number=3), prefix="a")

    found = scan(tmp_path)

    assert [series.series_number for series in found.series] == [3, 7]
    assert {series.study_uid for series in found.series} == {SMALL.study_uid}


def test_empty_uids_get_stand_ins_that_depend_on_content_alone(tmp_path: Path) -> None:
    def strip(_index: int, dataset: FileDataset) -> None:
        setting(SOPClassUID="", SOPInstanceUID="", StudyInstanceUID="", SeriesInstanceUID="", FrameOfReferenceUID="")(
            dataset
        )

    paths = write_ct_series(tmp_path / "one", edit=strip)
    for number, path in enumerate(reversed(paths)):
        (tmp_path / "two").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "two" / f"{number}.dcm")

    one, two = only_series(tmp_path / "one"), only_series(tmp_path / "two")

    assert [i.sop_instance_uid for i in one.instances] == [CtPhantom().sop_uid(index) for index in range(10)]
    uids = {one.study_uid, one.series_uid, one.frame_of_reference_uid}
    assert len(uids) == 3
    assert all(uid.UID(text).is_valid for text in uids)
    assert uids == {two.study_uid, two.series_uid, two.frame_of_reference_uid}
    assert len([note for note in one.notes if "stand-in" in note]) == 3


def test_instance_without_any_uid_gets_one_from_its_content(tmp_path: Path) -> None:
    def strip(_index: int, dataset: FileDataset) -> None:
        dataset.SOPInstanceUID = ""

    for path in write_ct_series(tmp_path, edit=strip):
        content = path.read_bytes()
        place = content.index(b"\x02\x00\x03\x00UI")
        path.write_bytes(content[: place + 8] + b"\0" * content[place + 6] + content[place + 8 + content[place + 6] :])

    uids = [instance.sop_instance_uid for instance in only_series(tmp_path).instances]

    assert len(set(uids)) == 10
    assert all(uid.UID(text).is_valid for text in uids)


def test_files_without_series_uid_are_told_apart_by_folder_and_by_grid(tmp_path: Path) -> None:
    def strip(_index: int, dataset: FileDataset) -> None:
        dataset.SeriesInstanceUID = ""

    write_ct_series(tmp_path / "a", SMALL, edit=strip)
    write_ct_series(tmp_path / "b", replace(SMALL, study="B"), edit=strip)
    write_ct_series(tmp_path / "b", replace(SMALL, shape=(5, 8, 8), series_number=2), edit=strip, prefix="x")

    assert sorted(series.number_of_instances for series in scan(tmp_path).series) == [4, 4, 5]


def test_localizer_is_left_out_with_a_note(tmp_path: Path) -> None:
    def make_localizer(index: int, dataset: FileDataset) -> None:
        if index == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_ct_series(tmp_path, edit=make_localizer)

    series = only_series(tmp_path)

    assert volume_geometry(series).shape[0] == 9
    assert "1 file marked as LOCALIZER left out." in series.notes


def test_exact_copies_are_left_out_with_a_note(tmp_path: Path) -> None:
    paths = write_ct_series(tmp_path)
    for number in (2, 5):
        shutil.copy(paths[number], tmp_path / f"copy{number}.dcm")
    edit_file(tmp_path / "copy5.dcm", lambda d: setattr(d.file_meta, "ImplementationVersionName", "OTHER"))

    series = only_series(tmp_path)

    assert volume_geometry(series).matches(CtPhantom().geometry)
    assert "2 files left out as an exact copy of another." in series.notes


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers"])
def test_two_passes_over_the_same_positions_become_two_volumes(tmp_path: Path, keyword: str) -> None:
    for number in (1, 2):
        write_ct_series(
            tmp_path,
            prefix=f"pass{number}",
            edit=lambda i, d, n=number: setting(**{keyword: n, "SOPInstanceUID": derived_uid("pass", n, i)})(d),
        )

    found = scan(tmp_path)

    assert [volume_geometry(series).shape[0] for series in found.series] == [10, 10]
    assert {series.notes[-1].rpartition(" ")[2] for series in found.series} == {"1.", "2."}
    assert select_series(found, "CT").rejected[0].reason.startswith("It has as many slices")


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path: Path) -> None:
    write_ct_series(tmp_path, edit=lambda i, d: setting(AcquisitionNumber=i)(d))

    assert only_series(tmp_path).number_of_instances == 10


def test_missing_end_slices_are_noted_when_numbers_show_them(tmp_path: Path) -> None:
    write_ct_series(tmp_path, omit=(0, 1))

    series = only_series(tmp_path)

    assert volume_geometry(series).shape[0] == 8
    assert any("from 3 to 10" in note for note in series.notes)


def test_missing_end_slices_are_noted_when_the_archive_counted_them(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL, edit=lambda i, d: setting(NumberOfSeriesRelatedInstances=6)(d))

    assert only_series(tmp_path).notes == ("The archive had 6 files of this series, and 4 are present.",)


# Geometry


@pytest.mark.parametrize(
    "phantom",
    [*all_orientations(), replace(SMALL, orientation=OBLIQUE)],
    ids=lambda p: f"{p.orientation}-{'flipped' if p.flip else 'straight'}",
)
def test_geometry_of_any_orientation_is_the_phantoms(tmp_path: Path, phantom: CtPhantom) -> None:
    write_ct_series(tmp_path, phantom)

    assert volume_geometry(only_series(tmp_path)).matches(phantom.geometry)


def test_step_is_measured_from_positions_not_from_thickness_or_numbers(tmp_path: Path) -> None:
    write_ct_series(
        tmp_path, edit=lambda i, d: setting(SliceThickness=9, SpacingBetweenSlices=7, InstanceNumber=(i * 7) % 10)(d)
    )

    assert volume_geometry(only_series(tmp_path)).spacing_mm == pytest.approx(CtPhantom().spacing_mm)


@pytest.mark.parametrize("jitter_mm", [0.05, -0.09])
def test_jitter_within_a_tenth_of_a_millimetre_is_tolerated(tmp_path: Path, jitter_mm: float) -> None:
    write_ct_series(tmp_path, edit=lambda i, d: moved(jitter_mm)(d) if i == 4 else None)

    assert volume_geometry(only_series(tmp_path)).spacing_mm[0] == pytest.approx(2.5)


def test_thick_steps_tolerate_one_per_cent(tmp_path: Path) -> None:
    phantom = replace(SMALL, spacing_mm=(20.0, 1.0, 1.0))
    write_ct_series(tmp_path, phantom, edit=lambda i, d: moved(0.19)(d) if i == 2 else None)

    assert volume_geometry(only_series(tmp_path)).spacing_mm[0] == pytest.approx(20.0)


def test_small_steps_that_add_up_are_not_taken_for_even_ones(tmp_path: Path) -> None:
    """Every single step is within 0.1 mm of the usual one, yet the far end would be misplaced by 2 mm."""
    phantom = replace(SMALL, shape=(60, 12, 10))
    write_ct_series(tmp_path, phantom, edit=lambda i, d: moved(0.07 * max(0, i - 30))(d))

    series = only_series(tmp_path)

    assert isinstance(acquired_grid(series), SliceStack)
    assert "unevenly spaced, 2.50 to 2.57 mm; they are resampled" in " ".join(series.notes)


def test_change_of_the_step_within_a_protocol_is_no_gap(tmp_path: Path) -> None:
    phantom = replace(SMALL, shape=(12, 12, 10))
    write_ct_series(tmp_path, phantom, edit=lambda i, d: moved(2.5 * max(0, i - 6))(d))

    grid = acquired_grid(only_series(tmp_path))

    assert isinstance(grid, SliceStack)
    assert grid.straight_grid.shape == (17, 12, 10)


def test_same_steps_with_a_hole_in_the_numbers_are_gaps(tmp_path: Path) -> None:
    def skipping(index: int, dataset: FileDataset) -> None:
        moved(2.5 * max(0, index - 6))(dataset)
        dataset.InstanceNumber = index + 1 + max(0, index - 6)

    write_ct_series(tmp_path, replace(SMALL, shape=(12, 12, 10)), edit=skipping)

    with pytest.raises(SpacingError, match=r"slices 7 and 8 of 12.* There are 4 more such gaps"):
        acquired_grid(only_series(tmp_path))


def test_gap_is_bridged_when_that_is_allowed(tmp_path: Path) -> None:
    write_ct_series(tmp_path, replace(SMALL, shape=(9, 12, 10)), omit=(3, 6, 7))

    with pytest.raises(SpacingError, match="2 slices seem to be missing"):
        acquired_grid(scan(tmp_path, allow_gaps=1).series[0])
    (series,) = scan(tmp_path, allow_gaps=2).series
    grid = acquired_grid(series)

    assert isinstance(grid, SliceStack)
    assert grid.straight_grid.matches(replace(SMALL, shape=(9, 12, 10)).geometry)
    assert "2.50 to 7.50 mm; they are resampled" in " ".join(series.notes)


@pytest.mark.parametrize("degrees", [-20.0, 1.0, 30.0])
def test_gantry_tilt_is_told_by_its_angle(tmp_path: Path, degrees: float) -> None:
    step = SMALL.spacing_mm[0] * float(np.tan(np.radians(degrees)))
    write_ct_series(tmp_path, SMALL, edit=lambda i, d: moved(sideways_mm=i * step)(d))

    series = only_series(tmp_path)

    assert isinstance(acquired_grid(series), SliceStack)
    assert f"tilted by {abs(degrees):.1f} degrees" in " ".join(series.notes)


def test_expected_number_of_slices_is_insisted_on(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL, omit=(3,))

    with pytest.raises(SeriesSelectionError, match="3 slices \\(expected 4") as caught:
        require_instances(only_series(tmp_path), 4)

    assert caught.value.code == "UCSEG-E115"
    require_instances(only_series(tmp_path), 3)


def test_gap_among_three_slices_is_found(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL, omit=(1,))

    with pytest.raises(SpacingError, match=r"5\.00 mm apart, the others 2\.50 mm"):
        volume_geometry(only_series(tmp_path))


# Choosing


def test_series_with_most_slices_is_chosen_and_others_get_a_reason(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a", replace(SMALL, series_number=1))
    write_ct_series(tmp_path / "b", replace(SMALL, series_number=2, shape=(6, 12, 10)))
    write_ct_series(tmp_path / "c", replace(SMALL, series_number=3, modality="MR"))
    write_ct_series(tmp_path / "d", replace(SMALL, series_number=4, shape=(9, 12, 10)), omit=(4,))

    selection = select_series(scan(tmp_path), "CT")

    assert selection.chosen.series_number == 2
    assert {item.series.series_number: (item.code, item.reason.split(".")[0]) for item in selection.rejected} == {
        1: ("UCSEG-E121", "It has fewer slices than series number 2 (CT, 6 files)"),
        3: ("UCSEG-E121", "the modality is MR (the model needs CT)"),
        4: ("UCSEG-E114", "slices 4 and 5 of 8, file 18 of 22 (instance 4) and file 19 of 22 (instance 6), are 5"),
    }


def test_series_that_cannot_be_decoded_does_not_hide_a_smaller_good_one(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "good", replace(SMALL, series_number=1))
    paths = write_ct_series(tmp_path / "cut", replace(SMALL, series_number=2, shape=(6, 12, 10)))
    paths[2].write_bytes(paths[2].read_bytes()[:-10])

    assert select_series(scan(tmp_path), "CT").chosen.series_number == 1


def test_equal_series_are_decided_by_lowest_number_not_by_file_name(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a", replace(SMALL, series_number=5))
    write_ct_series(tmp_path / "b", replace(SMALL, series_number=2))

    assert select_series(scan(tmp_path), "CT").chosen.series_number == 2


def test_caller_can_insist_on_a_series(tmp_path: Path) -> None:
    small, large = replace(SMALL, series_number=5), replace(SMALL, series_number=2, shape=(6, 12, 10))
    write_ct_series(tmp_path / "a", small)
    write_ct_series(tmp_path / "b", large)

    selection = select_series(scan(tmp_path), "CT", InputOptions(small.series_uid))

    assert selection.chosen.series_uid == small.series_uid
    assert [item.reason for item in selection.rejected] == ["Not the series that was asked for."]


def test_unknown_series_uid_is_refused(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL)

    with pytest.raises(SeriesSelectionError, match="asked for"):
        select_series(scan(tmp_path), "CT", InputOptions("1.2.3"))


def test_only_series_of_the_modality_gives_its_own_error(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a", omit=(4,))
    write_ct_series(tmp_path / "b", replace(SMALL, series_number=2, modality="MR"))

    with pytest.raises(SpacingError) as caught:
        select_series(scan(tmp_path), "CT")

    assert caught.value.code == "UCSEG-E114"


def test_several_unusable_series_give_all_reasons(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a", omit=(4,))
    write_ct_series(tmp_path / "b", replace(CtPhantom(), series_number=2), omit=range(1, 10))

    with pytest.raises(SeriesSelectionError, match=r"5\.00 mm apart.*needs at least 2"):
        select_series(scan(tmp_path), "CT")


def test_geometry_error_is_raised_by_geometry_itself(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL, edit=lambda i, d: moved(sideways_mm=3.0 * i)(d))

    with pytest.raises(GeometryError, match="gantry tilt of 50"):
        volume_geometry(only_series(tmp_path))


def test_number_beyond_what_an_integer_string_can_hold_counts_as_absent(tmp_path: Path) -> None:
    huge = b"\x20\x00\x13\x00IS\x16\x00" + b"9" * 22
    for index, path in enumerate(write_ct_series(tmp_path)):
        number = f"{index + 1:<2d}".encode()
        content = path.read_bytes()
        assert b"\x20\x00\x13\x00IS\x02\x00" + number in content
        path.write_bytes(content.replace(b"\x20\x00\x13\x00IS\x02\x00" + number, huge, 1))

    (series,) = scan(tmp_path).series

    assert {instance.instance_number for instance in series.instances} == {None}
    assert volume_geometry(series).shape == CtPhantom().shape
