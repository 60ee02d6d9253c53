"""Every class of bad input gives its own error, quickly, and without telling whose images they are."""

from __future__ import annotations

import logging
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_inputs import BAD_INPUTS, BadInput
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError
from ucseg_runtime.volume import Volume

LONGEST_S = 5.0
"""Processor time, so that a busy machine does not decide; the time-out of the test run catches a hang."""


def read_ct(folder: Path) -> Volume:
    return read_volume(select_series(scan(folder), "CT").chosen)


@pytest.fixture(scope="module")
def three_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A small series as bytes."""
    paths = write_ct_series(tmp_path_factory.mktemp("good"), CtPhantom(shape=(3, 12, 10)))
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_bad_input_gives_its_own_error_and_no_patient_data(
    bad: BadInput, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "canaryfolder"
    folder.mkdir()
    bad.write(folder)
    caplog.set_level(logging.DEBUG)
    start = process_time()

    with pytest.raises(InputError) as caught:
        read_ct(folder)

    error = caught.value
    assert process_time() - start < LONGEST_S
    assert (type(error), error.code, error.exit_code) == (bad.error, bad.code, 3), str(error)
    assert error.hint
    for text in bad.mentions:
        assert text in error.message
    everything_said = f"{error} {error.as_json()} {caplog.text} {capfd.readouterr()}".lower()
    assert not [canary for canary in PHI_CANARIES if canary in everything_said]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mutated_files_give_input_errors_or_a_volume_of_the_declared_shape(
    three_files: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Anything else that escapes is a defect: other exceptions, a hang, a volume of another shape."""
    folder = tmp_path_factory.mktemp("mutant")
    content = bytearray(three_files[1])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(132, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    for number, file in enumerate((three_files[0], bytes(content), three_files[2])):
        (folder / f"{number}.dcm").write_bytes(file)

    try:
        series = select_series(scan(folder), "CT").chosen
        headers, volume = source_headers(series), read_volume(series)
    except InputError:
        return

    assert len(headers) == volume.voxels.shape[0]
    assert volume.voxels.shape[1:] == (series.rows, series.columns)


def test_names_of_bad_inputs_are_unique() -> None:
    names = [bad.name for bad in BAD_INPUTS]
    assert len(names) == len(set(names))
