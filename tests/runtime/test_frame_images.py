"""Pictures and clips: what is refused and why, and frames in the colours that they have."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file

from tests.clip_phantom import CLASSES, ClipPhantom, colour_model, grey_model
from tests.model_phantom import ModelPhantom, manifest_fields
from tests.phantoms import PHI_CANARIES
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.clip_model import frames_at_a_time, require_picture_model
from ucseg_runtime.config import WHATEVER_FITS, InputOptions
from ucseg_runtime.dicom.frame_reader import FrameReader
from ucseg_runtime.errors import InputError, ManifestError
from ucseg_runtime.inputs import FoundClip, found_in
from ucseg_runtime.inspection import inspect_input
from ucseg_runtime.manifest import Manifest

EXACT = {
    "rgb": ClipPhantom(),
    "rgb by plane": ClipPhantom(by_plane=True),
    "palette": ClipPhantom(photometric="PALETTE COLOR"),
    "rle": ClipPhantom(transfer_syntax=uid.RLELossless),
    "jpeg 2000 rct": ClipPhantom(photometric="YBR_RCT", transfer_syntax=uid.JPEG2000Lossless),
    "jpeg 2000 rgb": ClipPhantom(transfer_syntax=uid.JPEG2000Lossless),
    "jpeg-ls": ClipPhantom(transfer_syntax=uid.JPEGLSLossless),
    "still": ClipPhantom(frames=1),
}
LOSSY = {
    "ybr": ClipPhantom(photometric="YBR_FULL"),
    "ybr 422": ClipPhantom(photometric="YBR_FULL_422"),
    "jpeg ybr": ClipPhantom(photometric="YBR_FULL_422", transfer_syntax=uid.JPEGBaseline8Bit),
    "jpeg rgb": ClipPhantom(transfer_syntax=uid.JPEGBaseline8Bit),
    "jpeg 2000 ict": ClipPhantom(photometric="YBR_ICT", transfer_syntax=uid.JPEG2000),
}


def manifest_of(model: ModelPhantom) -> Manifest:
    return Manifest.model_validate(manifest_fields(model, dict.fromkeys(GRAPHS, b"")))


def read_all(source: Path, model: ModelPhantom, wanted: InputOptions = WHATEVER_FITS) -> np.ndarray:
    spec = manifest_of(model)
    with found_in(source, spec, wanted) as found:
        assert isinstance(found, FoundClip)
        with FrameReader(found.selection.chosen, spec.channels) as reader:
            return reader.read(slice(None))


@pytest.mark.parametrize("name", EXACT)
def test_lossless_colours_come_back_exactly(name: str, tmp_path: Path) -> None:
    clip = EXACT[name]
    clip.write(tmp_path / "clip.dcm")
    frames = read_all(tmp_path, colour_model())
    assert frames.shape == (3, clip.frames, clip.rows, clip.columns)
    for frame in range(clip.frames):
        np.testing.assert_array_equal(np.moveaxis(frames[:, frame], 0, -1), clip.rgb(frame))


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_colours_come_back_away_from_edges(name: str, tmp_path: Path) -> None:
    clip = LOSSY[name]
    clip.write(tmp_path / "clip.dcm")
    frames = read_all(tmp_path, colour_model())
    for frame in range(clip.frames):
        mask = clip.mask(frame).astype(np.uint8)
        inner = cv2.erode(mask, np.ones((7, 7))) > 0
        outer = cv2.dilate(mask, np.ones((15, 15))) == 0
        assert inner.sum() > 20, "the object must have an inside"
        difference = np.abs(np.moveaxis(frames[:, frame], 0, -1).astype(int) - clip.rgb(frame))
        assert difference[inner | outer].mean() < 2
        assert difference[inner | outer].max() < 16


def test_jpeg_of_the_phantom_has_no_marker_of_its_colours() -> None:
    """Or the test of RGB in JPEG would pass by the marker and not by the header."""
    assert b"JFIF" not in LOSSY["jpeg rgb"].dataset().PixelData
    assert b"Adobe" not in LOSSY["jpeg rgb"].dataset().PixelData
    assert b"JFIF" in LOSSY["jpeg ybr"].dataset().PixelData


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_grey_comes_back_bright_side_up(photometric: str, tmp_path: Path) -> None:
    clip = ClipPhantom(modality="US", photometric=photometric)
    clip.write(tmp_path / "clip.dcm")
    frames = read_all(tmp_path, grey_model())
    for frame in range(clip.frames):
        np.testing.assert_array_equal(frames[0, frame], clip.grey_values(frame))
    repeated = read_all(tmp_path, colour_model("US"))
    np.testing.assert_array_equal(repeated, np.repeat(frames, 3, axis=0))


def test_colour_becomes_the_grey_that_training_reads_of_a_picture(tmp_path: Path) -> None:
    """To one level: readers of pictures round in their own way."""
    clip = ClipPhantom(modality="US", frames=1)
    clip.write(tmp_path / "in" / "clip.dcm")
    cv2.imwrite(str(tmp_path / "picture.png"), clip.rgb(0)[..., ::-1])
    expected = cv2.imread(str(tmp_path / "picture.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_allclose(read_all(tmp_path / "in", grey_model())[0, 0].astype(int), expected, atol=1)


def _set(**values: object) -> Callable[[pydicom.FileDataset], None]:
    def edit(dataset: pydicom.FileDataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def _as_16_bits(dataset: pydicom.FileDataset) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint8).astype(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"


def _as_mpeg(dataset: pydicom.FileDataset) -> None:
    dataset.file_meta.TransferSyntaxUID = uid.MPEG4HP41
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True


REFUSALS = {
    "16 bits": (_as_16_bits, "UCSEG-E121", "16 of 16 bits a sample"),
    "MPEG": (_as_mpeg, "UCSEG-E105", "MPEG-4"),
    "rescaled": (_set(RescaleSlope="2", RescaleIntercept="0"), "UCSEG-E121", "Rescale Slope"),
    "partial colours": (_set(PhotometricInterpretation="YBR_PARTIAL_420"), "UCSEG-E121", "YBR_PARTIAL_420"),
    "transform of another syntax": (_set(PhotometricInterpretation="YBR_RCT"), "UCSEG-E121", "without JPEG 2000"),
    "two samples": (_set(SamplesPerPixel=2), "UCSEG-E121", "2 samples"),
    "another class": (_set(SOPClassUID=uid.CTImageStorage), "UCSEG-E121", "CT Image Storage"),
    "cut off": (_set(PixelData=b"\0" * 100), "UCSEG-E104", "of pixel data"),
    "more frames than bytes": (_set(NumberOfFrames=2**31 - 1), "UCSEG-E107", "2147483647 frames"),
    "palette that is missing": (
        lambda dataset: _set(PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=1, NumberOfFrames=15)(dataset),
        "UCSEG-E104",
        "palette",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_precise(name: str, tmp_path: Path) -> None:
    edit, code, words = REFUSALS[name]
    ClipPhantom().write(tmp_path / "clip.dcm", edit=edit)
    with pytest.raises(InputError, match=words) as refused:
        read_all(tmp_path, colour_model())
    assert refused.value.code == code
    assert not any(canary.lower() in str(refused.value).lower() for canary in PHI_CANARIES)


def test_files_of_two_patients_are_refused(tmp_path: Path) -> None:
    ClipPhantom(instance=1).write(tmp_path / "a.dcm")
    ClipPhantom(instance=2).write(tmp_path / "b.dcm", edit=_set(PatientID="other"))
    with pytest.raises(InputError, match="more than one patient") as refused:
        read_all(tmp_path, colour_model())
    assert refused.value.code == "UCSEG-E110"


def test_inspection_counts_frames_and_names_every_check(tmp_path: Path) -> None:
    ClipPhantom(frames=4).write(tmp_path / "clip.dcm")
    report = inspect_input(tmp_path, manifest_of(colour_model()))
    (row,) = report.series
    assert (row.files, row.rows, row.columns, row.verdict) == (4, 50, 70, "used")
    assert [item.passed for item in row.checks] == [True, True, True]
    assert "Frame of Reference" not in row.reason
    (other,) = inspect_input(tmp_path, manifest_of(grey_model("US"))).series
    assert other.verdict == "rejected"
    assert "modality is ES" in other.reason


def test_model_that_needs_a_place_in_the_patient_is_refused() -> None:
    model = manifest_of(colour_model())
    require_picture_model(model)
    spaced = model.preprocessing.model_copy(update={"plane_shape": None, "spacing_mm": (1.0, 1.0, 1.0)})
    with pytest.raises(ManifestError, match="spacing in mm"):
        require_picture_model(model.model_copy(update={"preprocessing": spaced}))
    with pytest.raises(ManifestError, match="2 channels"):
        require_picture_model(model.model_copy(update={"channels": 2}))


def test_memory_does_not_grow_with_the_size_of_frames() -> None:
    spec = manifest_of(colour_model())
    assert frames_at_a_time(spec, 1080, 1920) == 15
    assert frames_at_a_time(spec, 480, 640) == 64
    assert frames_at_a_time(spec, 10_000, 10_000) == 1


def test_rules_that_look_at_an_image_are_given_one_frame() -> None:
    standardised = {"kind": "z_score"}
    changed = {**colour_model().changes["preprocessing"], "intensity": standardised}  # type: ignore[dict-item]  # a dict
    assert frames_at_a_time(manifest_of(colour_model(preprocessing=changed)), 50, 70) == 1
    cleaned = colour_model(postprocessing={"largest_component": [1]})
    assert frames_at_a_time(manifest_of(cleaned), 50, 70) == 1


def test_classes_of_the_phantom_are_the_ones_of_its_modalities() -> None:
    assert uid.UID(CLASSES["ES", True]).name == "Video Endoscopic Image Storage"


def _pydicom_files() -> list[Path]:
    folder = Path(get_testdata_file("CT_small.dcm")).parent
    return sorted(
        path for path in folder.glob("*.dcm") if path.name.startswith(("SC_", "ExplVR_BigEnd.", "GDCMJ2K", "examples"))
    )


def test_pictures_that_pydicom_keeps_give_its_colours_or_a_clear_refusal() -> None:
    """Every file is named, so that secondary captures of any modality are taken."""
    outcomes: Counter[str] = Counter()
    for path in _pydicom_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path)
        wanted = InputOptions(series_uid=header.get("SeriesInstanceUID"))
        try:
            frames = read_all(path, colour_model("OT"), wanted)
        except InputError as error:
            outcomes[error.code if error.hint else "no hint"] += 1
            continue
        if header.file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1:  # which pydicom alone cannot decode
            assert frames[:, 0, 5, 50].tolist() == [255, 0, 0], "the first of its bars of colour"
            outcomes["known"] += 1
            continue
        outcomes["read"] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = header.pixel_array  # in RGB
        expected = np.atleast_3d(expected).reshape(frames.shape[1], *frames.shape[2:], -1)
        found = np.moveaxis(frames, 0, -1)
        assert np.abs(found.astype(int) - expected).max() <= 3, path.name
    assert outcomes["read"] > 15, outcomes
    assert outcomes["known"] == 1
    assert set(outcomes) <= {"known", "read", *(f"UCSEG-E{number}" for number in (104, 105, 121))}, outcomes
