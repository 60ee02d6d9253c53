"""Enhanced multi-frame images: read like single slices, and results that refer to their frames."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset

from tests.enhanced_phantom import EnhancedPhantom
from tests.model_phantom import ModelPhantom
from tests.phantoms import OBLIQUE, CtPhantom, write_ct_series
from tests.results import conformance
from ucseg_runtime.config import InferenceOptions, InputOptions, OutputOptions, SegEncoding
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError, PixelDataError, SeriesSelectionError, SpacingError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.series_pipeline import segment_series

PHANTOM = CtPhantom(shape=(7, 36, 40), orientation=OBLIQUE)
SHUFFLED = (3, 0, 6, 1, 5, 2, 4)
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: uid.UID(syntax).name)
def test_frames_in_any_order_give_the_phantom(tmp_path: Path, syntax: str) -> None:
    EnhancedPhantom((PHANTOM,), order=SHUFFLED, transfer_syntax=syntax).write(tmp_path / "canary.dcm")

    volume = read_volume(select_series(scan(tmp_path), "CT").chosen)

    np.testing.assert_array_equal(volume.voxels, PHANTOM.hu)
    assert volume.geometry.matches(PHANTOM.geometry)


def test_series_that_highdicom_converted_gives_the_phantom(tmp_path: Path) -> None:
    legacy = [pydicom.dcmread(path) for path in write_ct_series(tmp_path / "single", PHANTOM)]
    converted = hd.legacy.LegacyConvertedEnhancedCTImage(legacy, "2.25.11", 2, "2.25.12", 1)
    (tmp_path / "enhanced").mkdir()
    converted.save_as(tmp_path / "enhanced" / "all.dcm")

    volume = read_volume(select_series(scan(tmp_path / "enhanced"), "CT").chosen)

    np.testing.assert_array_equal(volume.voxels, PHANTOM.hu)
    assert volume.geometry.matches(PHANTOM.geometry)


def test_fragmented_frames_are_joined_by_the_offset_table(tmp_path: Path) -> None:
    def in_pieces(dataset: FileDataset) -> None:
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=7))
        dataset.PixelData = pydicom.encaps.encapsulate(frames, fragments_per_frame=2)

    EnhancedPhantom((PHANTOM,), transfer_syntax=uid.JPEG2000Lossless).write(tmp_path / "a.dcm", in_pieces)

    np.testing.assert_array_equal(read_volume(scan(tmp_path).series[0]).voxels, PHANTOM.hu)


def test_phases_of_one_file_become_volumes_of_their_own(tmp_path: Path) -> None:
    early, late = PHANTOM, replace(PHANTOM, rescale=(1.0, -1000.0))
    EnhancedPhantom((early, late), (1, 1)).write(tmp_path / "a.dcm")

    found = scan(tmp_path).series

    assert [series.number_of_instances for series in found] == [7, 7]
    np.testing.assert_array_equal(read_volume(found[0]).voxels, early.hu)
    np.testing.assert_array_equal(read_volume(found[1]).voxels, late.hu)
    assert "told apart by temporal position: 1" in found[0].notes[-1]


def test_stacks_of_one_file_become_series_of_their_own(tmp_path: Path) -> None:
    other = replace(PHANTOM, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0))

    def turn(dataset: FileDataset) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence[7:]:
            item = Dataset()
            item.ImageOrientationPatient = list(other.orientation)
            group.PlaneOrientationSequence = [item]

    EnhancedPhantom((PHANTOM, other), (1, 2)).write(tmp_path / "a.dcm", turn)

    found = scan(tmp_path).series

    assert len(found) == 2
    assert read_volume(found[0]).geometry.matches(PHANTOM.geometry)
    assert read_volume(found[1]).geometry.matches(other.geometry)


def test_one_file_a_phase_is_told_apart_by_file(tmp_path: Path) -> None:
    EnhancedPhantom((PHANTOM,)).write(tmp_path / "a.dcm")
    EnhancedPhantom((PHANTOM,), transfer_syntax=uid.RLELossless).write(tmp_path / "b.dcm")

    assert [series.number_of_instances for series in scan(tmp_path).series] == [7, 7]


def test_copies_of_the_whole_file_are_left_out_once(tmp_path: Path) -> None:
    path = EnhancedPhantom((PHANTOM,)).write(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(path.read_bytes())

    (series,) = scan(tmp_path).series

    assert series.number_of_instances == 7
    assert series.notes == ("1 file left out as an exact copy of another.",)


def drop(keyword: str, frame: int):
    def change(dataset: FileDataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[frame][keyword]

    return change


def claim_frames(count: int):
    return lambda dataset: setattr(dataset, "NumberOfFrames", count)


def cut_pixels(dataset: FileDataset) -> None:
    dataset.PixelData = dataset.PixelData[:-100]


def other_values(dataset: FileDataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "US"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (drop("PlanePositionSequence", 3), "UCSEG-E118", "frame 4 of file 1 of 1 has no Image Position"),
        (lambda d: d.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence"), "UCSEG-E118", "Pixel Spacing"),
        (lambda d: d.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence"), "UCSEG-E118", "Orientation"),
        (claim_frames(8), "UCSEG-E104", "another number of frames than it describes"),
        (claim_frames(2_000_000), "UCSEG-E104", "another number of frames than it describes"),
        (cut_pixels, "UCSEG-E104", "bytes of pixel data"),
        (other_values, "UCSEG-E121", "no Hounsfield units"),
        (lambda d: d.pop("PerFrameFunctionalGroupsSequence"), "UCSEG-E104", "another number of frames"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: object, code: str, words: str) -> None:
    EnhancedPhantom((PHANTOM,)).write(tmp_path / "canary.dcm", change)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=words) as caught:
        read_volume(select_series(scan(tmp_path), "CT").chosen)

    assert caught.value.code == code
    assert "canary" not in str(caught.value).lower()


def test_missing_frame_is_a_gap(tmp_path: Path) -> None:
    EnhancedPhantom((PHANTOM,), order=(0, 1, 2, 4, 5, 6)).write(tmp_path / "a.dcm")

    with pytest.raises(SpacingError, match="frame 3 of file 1 of 1 and frame 4 of file 1 of 1"):
        select_series(scan(tmp_path), "CT")


def test_too_few_compressed_frames_are_refused(tmp_path: Path) -> None:
    def lose_one(dataset: FileDataset) -> None:
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=7))
        dataset.PixelData = pydicom.encaps.encapsulate(frames[:-1])

    EnhancedPhantom((PHANTOM,), transfer_syntax=uid.RLELossless).write(tmp_path / "a.dcm", lose_one)

    with pytest.raises(PixelDataError, match="6 fragments of pixel data .expected 7"):
        read_volume(scan(tmp_path).series[0])


def test_frames_without_places_are_refused(tmp_path: Path) -> None:
    path = write_ct_series(tmp_path, PHANTOM)[0]
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
    dataset.save_as(path)

    with pytest.raises(SeriesSelectionError, match="2 frames without places"):
        select_series(scan(tmp_path), "CT")


def references(dataset: Dataset) -> set[tuple[str, int]]:
    """All references to images with frames, at any depth."""
    found = set()
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found |= references(item)
    if "ReferencedFrameNumber" in dataset:
        found.add((str(dataset.ReferencedSOPInstanceUID), int(dataset.ReferencedFrameNumber)))
    return found


@pytest.mark.parametrize("seg_type", ["binary", "labelmap", "fractional"])
def test_results_refer_to_the_frames_and_conform(tmp_path: Path, seg_type: str) -> None:
    phantom = CtPhantom(shape=(12, 40, 48))
    source = EnhancedPhantom((phantom, phantom), (1, 1), order=tuple(reversed(range(12)))).write(
        tmp_path / "in" / "a.dcm"
    )
    model = load_model(ModelPhantom(centres=(-1.0, 0.1, 0.4)).write(tmp_path / "model"))

    segment_series(
        tmp_path / "in",
        tmp_path / "out",
        model,
        InferenceOptions(gate=False),
        OutputOptions(SegEncoding(seg_type), extras=frozenset({"rtstruct", "preview"})),  # type: ignore[arg-type]
    )

    file_uid = pydicom.dcmread(source, stop_before_pixels=True).SOPInstanceUID
    for region in pydicom.dcmread(tmp_path / "out" / "structures.dcm").ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            (image,) = contour.ContourImageSequence
            z = round((float(contour.ContourData[2]) - phantom.origin_mm[2]) / 2.5)
            assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (file_uid, 12 - z)
    for name in ("structures.dcm", "preview.dcm"):
        assert not conformance(tmp_path / "out" / name).errors
    validator = Path(sys.executable).with_name("dciodvfy")
    for name in ("segmentation.dcm", "uncertainty.dcm", "report.dcm"):
        finished = subprocess.run([validator, tmp_path / "out" / name], capture_output=True, text=True, check=False)
        assert not [line for line in finished.stderr.splitlines() if line.startswith("Error")], finished.stderr
        written = pydicom.dcmread(tmp_path / "out" / name)
        assert "2.25" in file_uid
        assert {uid for uid, _ in references(written)} <= {file_uid}
        if "PerFrameFunctionalGroupsSequence" not in written:
            continue
        for group in written.PerFrameFunctionalGroupsSequence:
            image = group.DerivationImageSequence[0].SourceImageSequence[0]
            z = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) - phantom.origin_mm[2]) / 2.5)
            assert image.ReferencedSOPInstanceUID == file_uid
            assert image.ReferencedSOPClassUID == uid.EnhancedCTImageStorage
            assert image.ReferencedFrameNumber == 12 - z
        named = written.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert [item.ReferencedSOPInstanceUID for item in named] == [file_uid]


def test_each_phase_can_be_chosen_and_gives_objects_of_its_own(tmp_path: Path) -> None:
    phantom = CtPhantom(shape=(12, 40, 48))
    EnhancedPhantom((phantom, phantom), (1, 1)).write(tmp_path / "in" / "a.dcm")
    model = load_model(ModelPhantom(centres=(-1.0, 0.1, 0.4)).write(tmp_path / "model"))

    results = [
        segment_series(
            tmp_path / "in",
            tmp_path / str(volume),
            model,
            InferenceOptions(gate=False),
            OutputOptions(),
            InputOptions(volume=volume),
        )
        for volume in (0, 1, 2)
    ]

    assert [result.found.selection.chosen.instances[0].frame for result in results] == [1, 1, 13]
    uids = [pydicom.dcmread(result.folder / "segmentation.dcm").SOPInstanceUID for result in results]
    assert uids[0] == uids[1] != uids[2]


def test_volume_that_is_not_there_is_refused(tmp_path: Path) -> None:
    EnhancedPhantom((PHANTOM, PHANTOM), (1, 1)).write(tmp_path / "a.dcm")

    with pytest.raises(SeriesSelectionError, match="no series of the input has a volume 3"):
        select_series(scan(tmp_path), "CT", InputOptions(volume=3))
