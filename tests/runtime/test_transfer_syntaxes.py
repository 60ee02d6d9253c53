"""Every compressed transfer syntax that is read, against the same values uncompressed; every other one is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from benchmarks.encoders import ENCODERS, NEAR, encoded
from tests.bad_inputs import relabelled
from tests.phantoms import CtPhantom, edit_file, write_ct_series
from tests.results import IDENTITY, segmentation_on
from ucseg_runtime.dicom.pmap_writer import write_pmap
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.seg_writer import write_seg
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.dicom.transfer_syntaxes import DECODERS, NATIVE
from ucseg_runtime.errors import PixelDataError

MEDIUM = CtPhantom(shape=(2, 40, 36), modality="MR", rescale=(1.0, 0.0))
DEPTHS = (8, 12, 16)
Error = Callable[[npt.NDArray[np.int64], int], float]


def largest(difference: npt.NDArray[np.int64], _bits: int) -> float:
    return float(np.abs(difference).max())


def noise_per_mille(difference: npt.NDArray[np.int64], bits: int) -> float:
    """Root mean square in thousandths of the range."""
    return float(1000.0 * np.sqrt(np.mean(difference.astype(float) ** 2)) / (2**bits - 1))


@dataclass(frozen=True)
class Claim:
    """What is promised of a transfer syntax.

    Attributes:
        depths: Bits Stored.
        signed: Whether signed values are read.
        error: How the difference from the twin is measured.
        at_most: Its bound, from the setting of the encoder.
    """

    depths: tuple[int, ...] = DEPTHS
    signed: bool = True
    error: Error = largest
    at_most: float = 0.0


LOSSLESS = Claim()
CLAIMS: dict[str, Claim] = {
    uid.RLELossless: LOSSLESS,
    uid.JPEG2000Lossless: LOSSLESS,
    uid.HTJ2KLossless: LOSSLESS,
    uid.HTJ2KLosslessRPCL: LOSSLESS,
    uid.JPEGLSLossless: LOSSLESS,
    uid.JPEGLossless: LOSSLESS,
    uid.JPEGLosslessSV1: LOSSLESS,
    uid.JPEG2000: Claim(error=noise_per_mille, at_most=4.0),  # 60 dB, and rounding to 8 bits
    uid.HTJ2K: Claim(error=noise_per_mille, at_most=4.0),
    uid.JPEGLSNearLossless: Claim(error=largest, at_most=NEAR),
    uid.JPEGBaseline8Bit: Claim((8,), signed=False, error=noise_per_mille, at_most=8.0),  # quality 95
    uid.JPEGExtended12Bit: Claim((8, 12), signed=False, error=noise_per_mille, at_most=8.0),
}
CASES = [
    pytest.param(syntax, bits, signed, id=f"{UID(syntax).keyword}-{bits} bit-{'signed' if signed else 'unsigned'}")
    for syntax, claim in CLAIMS.items()
    for bits in claim.depths
    for signed in ((False, True) if claim.signed else (False,))
]


def values(index: int, bits: int, signed: bool) -> npt.NDArray[np.integer]:
    """Smooth with some texture, over nine tenths of what the bits can hold."""
    top = 2**bits
    y, x = np.mgrid[: MEDIUM.shape[1], : MEDIUM.shape[2]]
    texture = np.random.default_rng(index).integers(0, max(2, top // 200), y.shape)
    ramp = (0.05 + 0.85 * np.abs(np.sin(x / 9.0 + index) * np.cos(y / 7.0))) * top + texture
    kind = "i" if signed else "u"
    return (ramp.astype(np.int64) - (top // 2 if signed else 0)).astype(f"<{kind}{1 if bits == 8 else 2}")


def write_twins(folder: Path, syntax: str, bits: int, signed: bool) -> tuple[Path, Path]:
    """The same series uncompressed and in `syntax`, 8 bits in a byte and more in two."""
    folders = folder / "uncompressed", folder / "compressed"
    for target, path in zip((uid.ExplicitVRLittleEndian, syntax), folders, strict=True):

        def edit(index: int, dataset: FileDataset, target: str = target) -> None:
            stored = values(index, bits, signed)
            dataset.SOPClassUID = uid.MRImageStorage
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.itemsize, bits, bits - 1
            dataset.PixelRepresentation = int(signed)
            compressed = UID(target).is_compressed
            dataset.PixelData = encapsulate([encoded(stored, target, bits)]) if compressed else stored.tobytes()
            dataset["PixelData"].VR = "OB" if compressed or bits == 8 else "OW"
            dataset.file_meta.TransferSyntaxUID = target

        write_ct_series(path, MEDIUM, edit=edit)
    return folders


def voxels_of(folder: Path) -> npt.NDArray[np.int64]:
    (series,) = scan(folder).series
    return read_volume(series).voxels.astype(np.int64)


def test_every_syntax_that_is_read_has_a_claim_and_an_encoder() -> None:
    assert set(CLAIMS) == set(DECODERS) == set(ENCODERS)


@pytest.mark.parametrize(("syntax", "bits", "signed"), CASES)
def test_compressed_series_equals_its_uncompressed_twin(tmp_path: Path, syntax: str, bits: int, signed: bool) -> None:
    uncompressed, compressed = write_twins(tmp_path, syntax, bits, signed)
    written = pydicom.dcmread(next(compressed.iterdir()))
    assert written.file_meta.TransferSyntaxUID == syntax
    assert (written.BitsStored, written.PixelRepresentation) == (bits, int(signed))

    expected, found = voxels_of(uncompressed), voxels_of(compressed)

    np.testing.assert_array_equal(expected, [values(index, bits, signed) for index in range(2)])
    claim = CLAIMS[syntax]
    assert claim.error(found - expected, bits) <= claim.at_most


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], ids=lambda s: UID(s).keyword)
def test_signed_values_in_lossy_jpeg_are_refused(tmp_path: Path, syntax: str) -> None:
    """The standard has none; as bits, -1 lies beside the largest value, and the loss mixes the two."""
    _, compressed = write_twins(tmp_path, syntax, 8, signed=True)

    with pytest.raises(PixelDataError, match="signed") as caught:
        voxels_of(compressed)

    assert caught.value.code == "UCSEG-E105"


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_lossy_values_that_overshoot_are_limited_and_never_wrap(tmp_path: Path, signed: bool) -> None:
    """A codestream of 16 bits for values of 12: what the loss puts above the highest would else become the lowest."""
    low, high = (-2048, 2047) if signed else (0, 4095)
    steps = np.where(np.indices((40, 36)).sum(axis=0) // 5 % 2, high, low).astype("<i2" if signed else "<u2")
    codestream = imagecodecs.jpeg2k_encode(steps, 40, codecformat="j2k", reversible=False)
    raw = imagecodecs.jpeg2k_decode(codestream).astype(int)
    assert raw.max() > high
    assert not signed or raw.min() < low

    def edit(_index: int, dataset: FileDataset) -> None:
        dataset.SOPClassUID, dataset.PixelRepresentation = uid.MRImageStorage, int(signed)
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = encapsulate([codestream])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = uid.JPEG2000

    write_ct_series(tmp_path, MEDIUM, edit=edit)

    np.testing.assert_array_equal(voxels_of(tmp_path)[0], np.clip(raw, low, high))


LOSSY = [syntax for syntax, claim in CLAIMS.items() if claim.at_most]


@pytest.mark.parametrize("syntax", [uid.RLELossless, *LOSSY], ids=lambda s: UID(s).keyword)
def test_results_of_lossy_images_say_so(tmp_path: Path, syntax: str) -> None:
    """Also where the source images do not say it themselves."""
    _, compressed = write_twins(tmp_path, syntax, 8, signed=False)
    (series,) = scan(compressed).series
    sources = source_headers(series)
    volume = read_volume(series)
    result = segmentation_on(volume.geometry, (volume.voxels > np.median(volume.voxels)).astype(np.uint8))

    write_seg(tmp_path / "seg.dcm", result, sources, IDENTITY)
    write_pmap(tmp_path / "pmap.dcm", result, sources, IDENTITY)

    for name in ("seg.dcm", "pmap.dcm"):
        assert pydicom.dcmread(tmp_path / name).LossyImageCompression == ("01" if syntax in LOSSY else "00"), name


READ_OR_TESTED_ELSEWHERE = {*NATIVE, *DECODERS, uid.ExplicitVRBigEndian}  # big endian is among the bad inputs
UNREAD = sorted(set(uid.AllTransferSyntaxes + uid.MPEGTransferSyntaxes) - READ_OR_TESTED_ELSEWHERE)


@pytest.mark.parametrize("syntax", UNREAD, ids=lambda s: UID(s).keyword or s)
def test_every_other_syntax_is_refused_by_its_name(tmp_path: Path, syntax: str) -> None:
    for path in write_ct_series(tmp_path, CtPhantom(shape=(2, 12, 10))):
        path.write_bytes(relabelled(path.read_bytes(), syntax.encode()))

    with pytest.raises(PixelDataError) as caught:
        select_series(scan(tmp_path), "CT")

    assert caught.value.code == "UCSEG-E105"
    assert UID(syntax).name in caught.value.message
    assert syntax in caught.value.message
    assert caught.value.hint


def package_file(name: str) -> Path | None:
    """A file of pydicom or of pydicom-data, without looking anywhere else."""
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    spec = find_spec("data_store")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "data")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


@pytest.mark.parametrize(
    ("name", "twin", "at_most"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm", 0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("693_J2KR.dcm", "693_UNCR.dcm", 0),
        ("693_J2KI.dcm", "693_UNCI.dcm", 0),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
        ("MR2_J2KI.dcm", "MR2_UNCI.dcm", 0),
        ("JPEG-LL.dcm", "JPEG-LL.dcm", 0),
        ("JPGExtended.dcm", "JPGExtended.dcm", 0),
        ("JPEG2000.dcm", "JPEG2000.dcm", 0),
        ("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_08.dcm", 0),
        ("JPEGLSNearLossless_16.dcm", "JPEGLSNearLossless_16.dcm", 0),
        ("J2K_pixelrep_mismatch.dcm", "J2K_pixelrep_mismatch.dcm", 0),
    ],
)
def test_files_of_other_software_equal_their_twin_or_what_pydicom_reads(
    tmp_path: Path, name: str, twin: str, at_most: int
) -> None:
    """Several of them end in a padding of 255. A file that is its own twin is compared with pydicom's own decoding."""
    path, other = package_file(name), package_file(twin)
    assert path is not None
    assert other is not None
    for z in range(2):
        shutil.copy(path, tmp_path / f"{z}.dcm")
        edit_file(tmp_path / f"{z}.dcm", lambda dataset, z=z: _as_slice(dataset, z))

    found = voxels_of(tmp_path)[0]

    assert found.std() > 0
    assert np.abs(found - _stored_by_pydicom(other)).max() <= at_most


def _as_slice(dataset: FileDataset, z: int) -> None:
    dataset.Modality, dataset.SOPClassUID = "MR", uid.MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{z}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.ImageType, dataset.NumberOfFrames = [1, 1], ["ORIGINAL", "PRIMARY"], 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0


def _stored_by_pydicom(path: Path) -> npt.NDArray[np.int64]:
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID in (uid.JPEGLosslessSV1, uid.JPEGExtended12Bit):
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        stored = imagecodecs.jpeg8_decode(frame)
        return stored.view(np.int16 if dataset.PixelRepresentation else stored.dtype).astype(np.int64)
    return dataset.pixel_array.astype(np.int64)
