"""Every class of bad input gives its own error, quickly, and without telling whose images they are.

The classes are the rows E101 … E125 of `docs/errors.md`. Three rows are no refusals: missing end slices (E115) and a
rescale that differs between slices (E120) are noted, unusual orientations (E123) work.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import FileDataset
from typer.testing import CliRunner

from tests.bad_inputs import BAD_INPUTS, BadInput, setting
from tests.model_phantom import ModelPhantom, manifest_fields
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from tests.proof_phantom import proven
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import WHATEVER_FITS
from ucseg_runtime.dicom.decoding import DecodeLimits, DecoderProcess
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.errors import InputError, PixelDataError
from ucseg_runtime.inputs import found_in
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.series_steps import StageTimes, read_series
from ucseg_runtime.volume import Volume

LONGEST_S = 5.0
"""Processor time, so that a busy machine does not decide; the time-out of the test run catches a hang."""


CT_MODEL = Manifest.model_validate(manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b"")))


def read_ct(input: Path) -> Volume:
    with found_in(input, CT_MODEL, WHATEVER_FITS) as found:
        return read_series(found, StageTimes()).volume


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
    written = bad.write(folder)
    caplog.set_level(logging.DEBUG)
    start = process_time()

    with pytest.raises(InputError) as caught:
        read_ct(written if isinstance(written, Path) else folder)

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


def test_every_row_of_the_table_has_three_variants_of_a_hundred_in_all() -> None:
    names = [bad.name for bad in BAD_INPUTS]
    assert len(names) == len(set(names)) >= 100
    variants = Counter(bad.code for bad in BAD_INPUTS)
    rows = {
        f"UCSEG-E{number}" for number in (*range(101, 106), 107, 108, *range(110, 115), 118, 119, 121, 122, 124, 125)
    }
    assert {row for row in rows if variants[row] < 3} == set()


def _without_time(patch: pytest.MonkeyPatch) -> DecodeLimits:
    return DecodeLimits(wall_seconds_per_file=0.01)


def _program_that_ends(patch: pytest.MonkeyPatch) -> DecodeLimits:
    patch.setattr("ucseg_runtime.dicom.decoding._CHILD_MODULE", "ucseg_runtime.version")
    return DecodeLimits()


def _program_that_crashes(patch: pytest.MonkeyPatch) -> DecodeLimits:
    exchange = DecoderProcess._exchange

    def crash(self: DecoderProcess, *arguments: Any) -> dict[str, str]:
        os.kill(self.pid, signal.SIGSEGV)
        return exchange(self, *arguments)

    patch.setattr(DecoderProcess, "_exchange", crash)
    return DecodeLimits()


@pytest.mark.parametrize(
    ("happening", "cause"),
    [
        (_without_time, r"did not finish within 0\.01 s"),
        (_program_that_ends, "ended with status 0"),
        (_program_that_crashes, r"ended by signal 11 \(SIGSEGV\)"),
    ],
    ids=["no time", "ends", "crashes"],
)
def test_decoder_that_dies_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happening: Callable[[pytest.MonkeyPatch], DecodeLimits], cause: str
) -> None:
    write_ct_series(tmp_path, CtPhantom(transfer_syntax=uid.JPEG2000Lossless))
    limits = happening(monkeypatch)

    with pytest.raises(PixelDataError, match=cause) as caught:
        read_volume(select_series(scan(tmp_path), "CT").chosen, limits)

    assert caught.value.code == "UCSEG-E106"
    assert "file 1 of 10 (instance 1)" in caught.value.message


@pytest.mark.parametrize("missing", [(0,), (0, 1, 2), (0, 9)], ids=str)
def test_missing_end_slices_are_noted(tmp_path: Path, missing: tuple[int, ...]) -> None:
    write_ct_series(tmp_path, omit=missing)

    notes = select_series(scan(tmp_path), "CT").chosen.notes

    assert any("slices at the ends may be missing" in note for note in notes)


@pytest.mark.parametrize(
    "change",
    [setting(RescaleIntercept="-1000"), setting(RescaleSlope="1.5"), setting(RescaleSlope="2", RescaleIntercept="-24")],
    ids=["intercept", "slope", "both"],
)
def test_rescale_that_differs_is_applied_to_its_own_slice_and_noted(
    tmp_path: Path, change: Callable[[FileDataset], None]
) -> None:
    write_ct_series(tmp_path, edit=lambda index, dataset: change(dataset) if index == 4 else None)
    header = pydicom.dcmread(tmp_path / "canaryfile_0004.dcm")

    volume = read_ct(tmp_path)

    stored = CtPhantom().hu + 1024
    np.testing.assert_array_equal(volume.voxels[3], CtPhantom().hu[3])
    np.testing.assert_array_equal(
        volume.voxels[4], stored[4] * float(header.RescaleSlope) + float(header.RescaleIntercept)
    )
    assert any("differs between slices" in note for note in select_series(scan(tmp_path), "CT").chosen.notes)


ONE_OF_EVERY_ROW = list({bad.code: bad for bad in BAD_INPUTS}.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proven(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom"))


@pytest.mark.parametrize("bad", ONE_OF_EVERY_ROW, ids=lambda bad: bad.code)
def test_command_line_exits_with_3_and_one_document(
    bad: BadInput, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "canaryfolder"
    folder.mkdir()
    written = bad.write(folder)
    arguments = ["segment", str(written if isinstance(written, Path) else folder), "--out", str(tmp_path / "out")]
    caplog.set_level(logging.DEBUG)

    result = CliRunner().invoke(app, [*arguments, "--model", str(model), "--json"])

    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["error"]["code"] == bad.code
    assert "Traceback" not in result.output
    everything_said = (result.stdout + result.stderr + caplog.text).lower()
    assert not [canary for canary in PHI_CANARIES if canary in everything_said]
    assert not (tmp_path / "out").exists()
