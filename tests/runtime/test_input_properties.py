"""What is true of every series: nothing depends on the order, the names or the copies of its files.

`UCSEG_TEST_LONG=1` tries 2,000 series instead of 50.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pydicom import uid
from typer.testing import CliRunner

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven
from tests.results import IDENTITY
from ucseg_runtime.cli.app import app
from ucseg_runtime.dicom import elements
from ucseg_runtime.dicom.files import find_files
from ucseg_runtime.dicom.headers import RefusedFileError, quiet_pydicom, read_instances
from ucseg_runtime.dicom.instances import Instance, Series
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.dicom.uids import UidSource

FINDING = (Phase.explicit, Phase.reuse, Phase.generate)
"""Files are written for every example, so that looking for the smallest one takes too long."""
EXAMPLES = 2000 if os.environ.get("UCSEG_TEST_LONG") else 50

lengths_mm = st.floats(0.2, 12.0).map(lambda value: round(value, 4))
places_mm = st.floats(-800.0, 800.0).map(lambda value: round(value, 4))


@st.composite
def orientations(draw: st.DrawFn) -> tuple[float, float, float, float, float, float]:
    """Any turn, also those along the axes."""
    quaternion = np.array(draw(st.tuples(*[st.integers(-4, 4)] * 4).filter(any)), dtype=float)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    row = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    column = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    a, b, c, d, e, f = (float(value) for value in (*row, *column))
    return a, b, c, d, e, f


phantoms = st.builds(
    CtPhantom,
    shape=st.tuples(st.integers(2, 6), st.integers(8, 12), st.integers(8, 12)),
    spacing_mm=st.tuples(lengths_mm, lengths_mm, lengths_mm),
    orientation=orientations(),
    origin_mm=st.tuples(places_mm, places_mm, places_mm),
    flip=st.booleans(),
    transfer_syntax=st.sampled_from([uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]),
    rescale=st.sampled_from([(1.0, -1024.0), (0.5, -1500.0), (2.0, -3000.0)]),
    signed=st.booleans(),
    modality=st.just("CT"),
)


def shuffled_copy(source: Path, target: Path, order: random.Random, copies: int) -> None:
    """The same files under other names, in folders, some of them several times."""
    files = sorted(source.iterdir())
    files += [order.choice(files) for _ in range(copies)]
    order.shuffle(files)
    for number, path in enumerate(files):
        folder = target / order.choice(("", "a", "b/c"))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{order.randrange(10**6):06d}-{number}.{order.choice(('dcm', 'IMA', ''))}")


def only_series(folder: Path) -> Series:
    (series,) = scan(folder).series
    return series


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=FINDING)
@given(phantom=phantoms, order=st.randoms(use_true_random=False), copies=st.integers(0, 3))
def test_order_names_and_copies_of_files_never_change_a_bit(
    tmp_path_factory: pytest.TempPathFactory, phantom: CtPhantom, order: random.Random, copies: int
) -> None:
    assume(phantom.hu.min() < 0)  # or it cannot be a CT
    folder = tmp_path_factory.mktemp("series")
    write_ct_series(folder / "sorted", phantom)
    shuffled_copy(folder / "sorted", folder / "shuffled", order, copies)

    reference, series = only_series(folder / "sorted"), only_series(folder / "shuffled")
    expected, volume = read_volume(reference), read_volume(series)
    headers = source_headers(series)

    assert volume.voxels.dtype == expected.voxels.dtype
    assert volume.voxels.tobytes() == expected.voxels.tobytes()
    assert volume.geometry.affine.tobytes() == expected.geometry.affine.tobytes()
    assert [str(header.SOPInstanceUID) for header in headers] == [phantom.sop_uid(z) for z in range(phantom.shape[0])]
    assert _identity(series) == _identity(reference)
    assert [note for note in series.notes if "copy" not in note] == list(reference.notes)
    assert any("copy" in note for note in series.notes) == (copies > 0)
    np.testing.assert_allclose(volume.geometry.affine, phantom.geometry.affine, atol=1e-3)
    np.testing.assert_allclose(volume.voxels, phantom.hu, atol=phantom.rescale[0] / 2)
    shutil.rmtree(folder)


def _identity(series: Series) -> tuple[str, ...]:
    """What the UIDs of all outputs are derived from, and one of these."""
    sources = tuple(instance.sop_instance_uid for instance in series.instances)
    return (series.study_uid, series.series_uid, *sources, UidSource(sources, IDENTITY).of_output("segmentation"))


def test_order_and_names_of_files_never_change_a_byte_of_the_results(tmp_path: Path) -> None:
    """Through the command line, the record with its digests included."""
    model = proven(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model"))
    write_ct_series(tmp_path / "sorted", CtPhantom(shape=(12, 40, 48)))
    shuffled_copy(tmp_path / "sorted", tmp_path / "shuffled", random.Random(7), copies=0)  # noqa: S311
    written = []
    for name in ("sorted", "shuffled"):
        out = tmp_path / f"{name}-out"
        arguments = ["segment", str(tmp_path / name), "--out", str(out), "--model", str(model)]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        written.append({path.name: path.read_bytes() for path in out.iterdir()})

    assert "record.json" in written[0]
    assert written[0] == written[1]


# The short way to values of the header, and pydicom's


@contextmanager
def pydicoms_conversion() -> Iterator[None]:
    with mock.patch.object(elements, "_plain_values", return_value=None):
        yield


def _instances(folder: Path) -> dict[str, list[Instance] | str]:
    found: dict[str, list[Instance] | str] = {}
    with quiet_pydicom() as caught:
        for file in find_files(folder, 10**8):
            try:
                found[file.path.name] = read_instances(file, caught)
            except RefusedFileError as refusal:
                found[file.path.name] = refusal.code
    return found


@pytest.mark.parametrize("name", ["test_files", "charset_files", "test_files/dicomdirtests"])
def test_headers_of_other_software_are_read_as_pydicom_converts_them(name: str) -> None:
    folder = Path(pydicom.__file__).parent / "data" / name

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _instances(folder)
        with pydicoms_conversion():
            expected = _instances(folder)

    assert sum(isinstance(item, list) for item in found.values()) > 10
    assert found == expected


@settings(max_examples=10 * EXAMPLES, deadline=None)
@given(
    vr=st.sampled_from(["CS", "DS", "IS", "UI", "LO", "PN", "DA"]),
    value=st.one_of(
        st.binary(max_size=24),
        st.text("0123456789.+-eE\\ naif_\0", max_size=20).map(lambda text: text.encode("ascii")),
    ),
)
def test_numbers_and_codes_are_those_that_pydicom_finds(vr: str, value: bytes) -> None:
    """For all values that a number, UID or term can be made of; pydicom may also refuse what has one here."""
    keyword = {"CS": "Modality", "DS": "RescaleSlope", "IS": "SeriesNumber", "UI": "StudyInstanceUID"}.get(
        vr, "StudyID"
    )
    raw = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(keyword), vr, len(value), value or None, 0, False, True, True)
    dataset = pydicom.Dataset({raw.tag: raw})
    with quiet_pydicom():
        found = _meanings(dataset, keyword)
        with pydicoms_conversion():
            expected = _meanings(dataset, keyword)
    assert all(there in (here, None, "") for here, there in zip(found, expected, strict=True)), (found, expected)


def _meanings(dataset: pydicom.Dataset, keyword: str) -> tuple[object, ...]:
    """What the reader takes from an element of this name."""
    if keyword == "StudyInstanceUID":
        return (elements.uid_of(dataset, keyword),)
    if keyword in ("Modality", "StudyID"):
        return (elements.code_of(dataset, keyword),)
    return elements.integer_of(dataset, keyword), *(elements.numbers_of(dataset, keyword, count) for count in (1, 2, 3))
