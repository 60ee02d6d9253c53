"""Every class of bad input gives its own error, quickly, and without telling whose images they are."""

from __future__ import annotations

import logging
from pathlib import Path
from time import process_time

import pytest

from tests.bad_inputs import BAD_INPUTS, BadInput
from tests.phantoms import PHI_CANARIES
from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError
from ucseg_runtime.volume import Volume

LONGEST_S = 5.0
"""Processor time, so that a busy machine does not decide; the time-out of the test run catches a hang."""


def read_ct(folder: Path) -> Volume:
    return read_volume(select_series(scan(folder), "CT").chosen)


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


def test_names_of_bad_inputs_are_unique() -> None:
    names = [bad.name for bad in BAD_INPUTS]
    assert len(names) == len(set(names))
