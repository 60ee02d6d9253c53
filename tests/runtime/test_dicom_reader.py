"""From a series to voxels: values, placement, transfer syntaxes, and the process that decodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset

from tests.bad_inputs import UNREADABLE_ELEMENT, nested, setting
from tests.phantoms import OBLIQUE, PHI_CANARIES, CtPhantom, all_orientations, edit_file, write_ct_series
from ucseg_runtime.dicom import transfer_syntaxes
from ucseg_runtime.dicom.checks import require_readable_pixels
from ucseg_runtime.dicom.decoding import DecodeLimits, DecoderProcess
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.reader import read_volume, read_voxels, source_headers
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError, PixelDataError

SMALL = CtPhantom(shape=(4, 12, 10))
MEDIUM = CtPhantom(shape=(3, 40, 36))
"""JPEG 2000 needs some size."""
COMPRESSED = (
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
)


def only_series(folder: Path) -> Series:
    (series,) = scan(folder).series
    return series


# Values


def test_voxels_are_the_phantoms_hounsfield_units(tmp_path: Path) -> None:
    write_ct_series(tmp_path)

    volume = read_volume(only_series(tmp_path))

    assert volume.voxels.dtype == np.int16
    assert volume.modality == "CT"
    np.testing.assert_array_equal(volume.voxels, CtPhantom().hu)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, *COMPRESSED], ids=lambda item: uid.UID(item).keyword)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_every_lossless_transfer_syntax_gives_equal_voxels(tmp_path: Path, syntax: str, signed: bool) -> None:
    phantom = replace(MEDIUM, transfer_syntax=syntax, signed=signed)
    write_ct_series(tmp_path, phantom)

    series = only_series(tmp_path)

    assert {instance.transfer_syntax for instance in series.instances} == {syntax}
    np.testing.assert_array_equal(read_volume(series).voxels, phantom.hu)


def test_syntaxes_may_be_mixed_within_a_series(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL, omit=(1, 3))
    write_ct_series(tmp_path, replace(SMALL, transfer_syntax=uid.RLELossless), omit=(0, 2))

    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).voxels, SMALL.hu)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    """The same stored values with an intercept 100 HU higher from slice 2 on."""
    write_ct_series(tmp_path, SMALL, edit=lambda i, d: setting(RescaleIntercept="-924")(d) if i >= 2 else None)
    series = only_series(tmp_path)

    voxels = read_volume(series).voxels

    np.testing.assert_array_equal(voxels[:2], SMALL.hu[:2])
    np.testing.assert_array_equal(voxels[2:], SMALL.hu[2:] + 100)
    assert any("Rescale" in note for note in series.notes)


def test_jump_of_the_intensities_where_the_rescale_changes_is_noted(tmp_path: Path) -> None:
    phantom = replace(SMALL, shape=(8, 12, 10))
    write_ct_series(tmp_path, phantom, edit=lambda i, d: setting(RescaleIntercept="-24")(d) if i >= 5 else None)

    _, (note,) = read_voxels(only_series(tmp_path))

    assert note.startswith("The mean intensity jumps by ")
    assert "file 5 of 8 (instance 5) and file 6 of 8 (instance 6)" in note


def test_smooth_intensities_are_not_noted_however_they_are_rescaled(tmp_path: Path) -> None:
    def rescaled(index: int, dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16) + np.uint16(10 * index)
        dataset.PixelData, dataset.RescaleIntercept = stored.tobytes(), str(-1024 - 10 * index)

    write_ct_series(tmp_path, replace(SMALL, shape=(8, 12, 10)), edit=rescaled)

    assert read_voxels(only_series(tmp_path))[1] == ()


def test_fractional_rescale_gives_float32(tmp_path: Path) -> None:
    phantom = replace(SMALL, rescale=(0.5, -1024.25))
    write_ct_series(tmp_path, phantom)

    voxels = read_volume(only_series(tmp_path)).voxels

    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, phantom.hu, atol=0.25)  # half a step of the stored values


def test_integers_beyond_int16_give_float32(tmp_path: Path) -> None:
    def add_metal(index: int, dataset: FileDataset) -> None:
        if index == 1:
            stored = np.frombuffer(dataset.PixelData, dtype=np.uint16).copy()
            stored[0] = 65535
            dataset.PixelData = stored.tobytes()

    write_ct_series(tmp_path, SMALL, edit=add_metal)

    voxels = read_volume(only_series(tmp_path)).voxels

    assert voxels.dtype == np.float32
    assert voxels[1, 0, 0] == 65535 - 1024
    np.testing.assert_array_equal(voxels[2], SMALL.hu[2])


def test_bits_above_bits_stored_are_ignored(tmp_path: Path) -> None:
    """Old scanners keep overlays there."""

    def add_overlay(_index: int, dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16)
        assert stored.max() < 4096  # the premise: 12 bits hold the phantom
        dataset.PixelData = (stored | 0xA000).tobytes()
        dataset.BitsStored, dataset.HighBit = 12, 11

    write_ct_series(tmp_path, SMALL, edit=add_overlay)

    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).voxels, SMALL.hu)


def test_sign_of_values_shorter_than_their_container_is_kept(tmp_path: Path) -> None:
    def cut_to_13_bits(_index: int, dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.int16)
        assert stored.min() < 0
        dataset.PixelData = (stored & 0x1FFF).tobytes()
        dataset.BitsStored, dataset.HighBit = 13, 12

    write_ct_series(tmp_path, replace(SMALL, signed=True, rescale=(1.0, 0.0)), edit=cut_to_13_bits)

    np.testing.assert_array_equal(read_volume(only_series(tmp_path)).voxels, SMALL.hu)


@pytest.mark.parametrize("padding_hu", [-1024, -2000, -2048, -3024])
def test_padding_outside_the_field_of_view_is_accepted(tmp_path: Path, padding_hu: int) -> None:
    phantom = replace(SMALL, signed=True)

    def pad(_index: int, dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.int16).copy()
        stored[:20] = padding_hu + 1024
        dataset.PixelData = stored.tobytes()

    write_ct_series(tmp_path, phantom, edit=pad)

    assert read_volume(only_series(tmp_path)).voxels.min() == padding_hu


def test_odd_number_of_8_bit_pixels_is_read(tmp_path: Path) -> None:
    def to_8_bit(_index: int, dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16)
        dataset.PixelData = (stored // 16).astype(np.uint8).tobytes() + b"\0"
        dataset["PixelData"].VR = "OB"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.RescaleSlope = 8, 8, 7, "16"

    phantom = replace(SMALL, shape=(4, 11, 9))
    write_ct_series(tmp_path, phantom, edit=to_8_bit)

    np.testing.assert_allclose(read_volume(only_series(tmp_path)).voxels, phantom.hu, atol=15)  # 16 HU per step


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    ],
)
def test_samples_from_other_software_equal_their_uncompressed_twin(tmp_path: Path, name: str, twin: str) -> None:
    voxels = []
    for number, sample in enumerate((name, twin)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for z in range(2):
            shutil.copy(get_testdata_file(sample), folder / f"{z}.dcm")
            edit_file(folder / f"{z}.dcm", lambda d, z=z: _at_height(d, z))
        voxels.append(read_volume(only_series(folder)).voxels)

    assert voxels[1].std() > 0
    np.testing.assert_array_equal(voxels[0], voxels[1])


def _at_height(dataset: FileDataset, z: int) -> None:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{z}"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]


# Placement


@pytest.mark.parametrize(
    "phantom",
    [*all_orientations(), replace(SMALL, orientation=OBLIQUE)],
    ids=lambda p: f"{p.orientation}-{'flipped' if p.flip else 'straight'}",
)
def test_marked_voxels_lie_where_their_own_file_says(tmp_path: Path, phantom: CtPhantom) -> None:
    """The position is computed from the one file that holds the marker, by the formula of the standard."""
    paths = write_ct_series(tmp_path, phantom)
    expected = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array - 1024
        for value in phantom.markers.values():
            for row, column in np.argwhere(pixels == value):
                along_row, along_column = np.reshape([float(c) for c in dataset.ImageOrientationPatient], (2, 3))
                row_spacing, column_spacing = map(float, dataset.PixelSpacing)
                corner = np.array([float(c) for c in dataset.ImagePositionPatient])
                expected[value] = corner + along_row * column_spacing * column + along_column * row_spacing * row

    volume = read_volume(only_series(tmp_path))

    assert len(expected) == 3
    for value, position in expected.items():
        (index,) = np.argwhere(volume.voxels == value)
        np.testing.assert_allclose(volume.geometry.lps_from_index(index), position, atol=1e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.permutations([f"{number}.dcm" for number in range(4)]),
    phantom=st.sampled_from([SMALL, replace(SMALL, orientation=OBLIQUE, flip=True)]),
)
def test_names_and_order_of_files_change_nothing(tmp_path: Path, names: list[str], phantom: CtPhantom) -> None:
    folder = tmp_path / "-".join([*names, str(phantom.flip)])
    write_ct_series(folder / "sorted", phantom)
    (folder / "shuffled").mkdir(exist_ok=True)
    for path, name in zip(sorted((folder / "sorted").iterdir()), names, strict=True):
        shutil.copy(path, folder / "shuffled" / name)

    series = only_series(folder / "shuffled")
    volume, reference = read_volume(series), read_volume(only_series(folder / "sorted"))

    assert volume.voxels.tobytes() == reference.voxels.tobytes() == phantom.hu.tobytes()
    assert volume.geometry.affine.tobytes() == reference.geometry.affine.tobytes()
    assert [item.sop_instance_uid for item in series.instances] == [phantom.sop_uid(z) for z in range(4)]


# Headers for the writers


def test_source_headers_follow_the_slices_and_hold_no_pixels(tmp_path: Path) -> None:
    write_ct_series(tmp_path, replace(SMALL, flip=True))

    headers = source_headers(only_series(tmp_path))

    assert [header.SOPInstanceUID for header in headers] == [SMALL.sop_uid(z) for z in range(4)]
    assert [header.InstanceNumber for header in headers] == [4, 3, 2, 1]
    assert not any("PixelData" in header for header in headers)
    assert {header.PatientID for header in headers} == {pydicom.dcmread(next(tmp_path.iterdir())).PatientID}


def test_source_headers_have_every_uid_that_outputs_need(tmp_path: Path) -> None:
    write_ct_series(
        tmp_path,
        SMALL,
        edit=lambda _i, d: setting(
            SOPClassUID="", SOPInstanceUID="", StudyInstanceUID="", SeriesInstanceUID="", FrameOfReferenceUID=""
        )(d),
    )
    series = only_series(tmp_path)

    headers = source_headers(series)

    assert {header.SOPClassUID for header in headers} == {uid.CTImageStorage}
    assert [header.SOPInstanceUID for header in headers] == [SMALL.sop_uid(z) for z in range(4)]
    assert {(h.StudyInstanceUID, h.SeriesInstanceUID, h.FrameOfReferenceUID) for h in headers} == {
        (series.study_uid, series.series_uid, series.frame_of_reference_uid)
    }


def test_source_headers_leave_out_what_nobody_can_convert(tmp_path: Path) -> None:
    """An unknown value representation makes pydicom raise as soon as the element is touched."""
    for path in write_ct_series(tmp_path, SMALL):
        path.write_bytes(
            path.read_bytes()
            .replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x18\x00UY", 1)
            .replace(b"\x10\x00\x10\x10AS", b"\x10\x00\x10\x10AY", 1)
        )
    with pytest.raises(NotImplementedError):
        _ = pydicom.dcmread(path).PatientAge  # the premise

    header = source_headers(only_series(tmp_path))[3]

    assert "PatientAge" not in header
    assert header.SOPInstanceUID == SMALL.sop_uid(3)


@pytest.mark.parametrize("tag", [b"\x08\x00\x20\x00", b"\x08\x00\x10\x11"], ids=["date", "sequence"])
def test_source_headers_leave_out_what_takes_for_ever_to_write(tmp_path: Path, tag: bytes) -> None:
    """Sequences in each other, with something unreadable at the bottom: pydicom quotes level within level."""
    study_date = b"\x08\x00\x20\x00DA\x08\x0020200102"
    for path in write_ct_series(tmp_path, SMALL):
        content = path.read_bytes()
        assert study_date in content
        path.write_bytes(content.replace(study_date, nested(tag, 100, UNREADABLE_ELEMENT), 1))

    header = source_headers(only_series(tmp_path))[0]

    assert "StudyDate" not in header
    assert header.SeriesDate == "20200102"
    header.save_as(tmp_path / "copy.dcm", enforce_file_format=True)


def test_source_headers_keep_sequences_without_what_is_unreadable_in_them(tmp_path: Path) -> None:
    study_date = b"\x08\x00\x20\x00DA\x08\x0020200102"
    size = b"\x10\x00\x20\x10DS\x02\x0042"
    for path in write_ct_series(tmp_path, SMALL):
        sequence = nested(b"\x08\x00\x10\x11", 2, UNREADABLE_ELEMENT + size)
        path.write_bytes(path.read_bytes().replace(study_date, sequence, 1))

    inner = source_headers(only_series(tmp_path))[0].ReferencedStudySequence[0].ReferencedStudySequence[0]

    assert [element.keyword for element in inner] == ["PatientSize"]


@pytest.mark.parametrize("read", [source_headers, read_volume], ids=["headers", "pixels"])
@pytest.mark.parametrize("happening", ["deleted", "rewritten", "replaced by a pipe"])
def test_file_that_changes_after_the_scan_is_refused(
    tmp_path: Path, read: Callable[[Series], object], happening: str
) -> None:
    path = write_ct_series(tmp_path, SMALL)[2]
    series = only_series(tmp_path)
    if happening == "rewritten":
        edit_file(path, setting(StudyID="other"))
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    if happening == "replaced by a pipe":
        os.mkfifo(path)

    with pytest.raises(InputError, match=r"file 3 of 4 \(instance 3\) cannot be read any more") as caught:
        read(series)

    assert not [canary for canary in PHI_CANARIES if canary in str(caught.value).lower()]


# Decoding in a process of its own


def rle_series(folder: Path) -> Series:
    write_ct_series(folder, replace(SMALL, transfer_syntax=uid.RLELossless))
    return only_series(folder)


def frame_of(instance: Instance) -> bytes:
    dataset = pydicom.dcmread(instance.path)
    return next(iter(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)))


def test_decoder_killed_by_a_signal_names_file_and_signal(tmp_path: Path) -> None:
    instance = rle_series(tmp_path).instances[2]
    out = memoryview(bytearray(instance.pixel_format.frame_bytes))

    with DecoderProcess(DecodeLimits()) as decoder:
        decoder.decode(frame_of(instance), instance, out)  # the premise: it works before
        os.kill(decoder.pid, signal.SIGSEGV)
        with pytest.raises(PixelDataError, match=r"file 3 of 4 \(instance 3\).*signal 11 \(SIGSEGV\)") as caught:
            decoder.decode(frame_of(instance), instance, out)

    assert caught.value.code == "UCSEG-E106"


def test_decoder_that_stops_answering_is_ended_by_the_clock(tmp_path: Path) -> None:
    instance = rle_series(tmp_path).instances[0]
    out = memoryview(bytearray(instance.pixel_format.frame_bytes))

    with DecoderProcess(DecodeLimits(wall_seconds_per_file=0.2)) as decoder:
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(PixelDataError, match=r"did not finish within 0\.2 s") as caught:
            decoder.decode(frame_of(instance), instance, out)

    assert caught.value.code == "UCSEG-E106"


def test_decoder_without_memory_is_refused_with_its_limit(tmp_path: Path) -> None:
    """A frame far larger than the address space that the process may have."""
    series = rle_series(tmp_path)
    huge = replace(
        series.instances[0], pixel_format=replace(series.instances[0].pixel_format, rows=40_000, columns=40_000)
    )

    with (
        DecoderProcess(DecodeLimits(memory_bytes=1024**3)) as decoder,
        pytest.raises(PixelDataError, match="needs more memory than 1073741824 bytes") as caught,
    ):
        decoder.decode(frame_of(series.instances[0]), huge, memoryview(bytearray(8)))

    assert caught.value.code == "UCSEG-E106"


def test_decoder_process_is_limited_in_memory_processor_time_and_files(tmp_path: Path) -> None:
    instance = rle_series(tmp_path).instances[0]
    with DecoderProcess(DecodeLimits(memory_bytes=1024**3, cpu_seconds_per_file=3)) as decoder:
        decoder.decode(frame_of(instance), instance, memoryview(bytearray(instance.pixel_format.frame_bytes)))
        limits = Path(f"/proc/{decoder.pid}/limits").read_text(encoding="ascii")

    soft = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()}
    assert soft["Max address space"] == str(1024**3)
    assert 4 <= int(soft["Max cpu time"]) <= 20  # what it took to start, and 3 s
    assert (soft["Max core file size"], soft["Max file size"]) == ("0", "0")


def test_decoder_process_leaves_nothing_behind(tmp_path: Path) -> None:
    instance = rle_series(tmp_path).instances[0]
    with DecoderProcess(DecodeLimits()) as decoder:
        decoder.decode(frame_of(instance), instance, memoryview(bytearray(instance.pixel_format.frame_bytes)))
        pid = decoder.pid

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_decoding_program_loads_neither_highdicom_nor_an_engine() -> None:
    program = "import sys, ucseg_runtime.dicom.decode_child; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert not {"highdicom", "openvino", "onnxruntime", "scipy", "cv2", "torch"} & set(finished.stdout.split())


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        (uid.JPEG2000Lossless, "pylibjpeg-openjpeg"),
        (uid.JPEGLSLossless, "pyjpegls"),
        (uid.JPEGLosslessSV1, "imagecodecs"),
        (uid.RLELossless, "pylibjpeg-rle"),
    ],
)
def test_missing_decoder_names_syntax_and_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, package: str
) -> None:
    write_ct_series(tmp_path, replace(MEDIUM, transfer_syntax=syntax))
    found = scan(tmp_path)
    monkeypatch.setattr(transfer_syntaxes, "find_spec", lambda module: None if module != "pylibjpeg" else object())

    with pytest.raises(PixelDataError) as caught:
        select_series(found, "CT")

    assert caught.value.code == "UCSEG-E105"
    assert uid.UID(syntax).name in caught.value.message
    assert syntax in caught.value.message
    assert f"pip install {package}" in caught.value.hint


def test_budget_counts_the_whole_series(tmp_path: Path) -> None:
    write_ct_series(tmp_path, SMALL)

    with pytest.raises(PixelDataError, match=r"960 bytes of pixels in 4 files \(at most 959\)") as caught:
        require_readable_pixels(only_series(tmp_path), max_volume_bytes=959)

    assert caught.value.code == "UCSEG-E107"


@pytest.mark.real_data
def test_patient_a_is_read_as_acquired(patient_a_folder: Path) -> None:
    """LIDC-IDRI-0001: 133 slices, exactly 2.5 mm apart, padding of -2048 HU."""
    volume = read_volume(select_series(scan(patient_a_folder), "CT").chosen)

    assert volume.voxels.shape == (133, 512, 512)
    assert volume.voxels.dtype == np.int16
    assert volume.geometry.spacing_mm == pytest.approx((2.5, 0.703125, 0.703125))
    assert (volume.voxels.min(), volume.voxels.max()) == (-2048, 3071)
