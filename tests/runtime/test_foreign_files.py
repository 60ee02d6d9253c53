"""Files that others collected because they are hard to read: pydicom's own test tree and the package pydicom-data.

Each file alone and each tree as a whole gives a volume that pydicom confirms, or a clear refusal. Nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.model_phantom import ModelPhantom, manifest_fields
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.config import WHATEVER_FITS
from ucseg_runtime.errors import InputError
from ucseg_runtime.inputs import FoundSeries, found_in
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.series_steps import StageTimes, read_series


def _pydicom_data() -> Path:
    spec = find_spec("data_store")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


TREES = {"pydicom": Path(get_testdata_file("CT_small.dcm")).parent, "pydicom-data": _pydicom_data()}
"""Folders with 176 and 68 files."""


def model_for(modality: str) -> Manifest:
    fields = manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))
    return Manifest.model_validate({**fields, "modality": modality})


def outcome(input: Path, model: Manifest) -> str:
    """``read``, once pydicom has confirmed voxels and positions, or the code of the refusal."""
    try:
        with found_in(input, model, WHATEVER_FITS) as found:
            assert isinstance(found, FoundSeries)
            volume = read_series(found, StageTimes()).volume
    except InputError as error:
        return error.code if error.message and error.hint else "no words"
    instances = found.selection.chosen.instances
    assert volume.voxels.shape[0] == len(instances)
    for z, instance in enumerate(instances):
        dataset = pydicom.dcmread(instance.path)
        expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(volume.voxels[z], expected)
        np.testing.assert_allclose(
            volume.geometry.lps_from_index((z, 0, 0)), np.array(dataset.ImagePositionPatient, dtype=float), atol=0.1
        )
    return "read"


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("tree", TREES)
def test_every_file_gives_a_right_answer_or_a_clear_refusal(
    tree: str, modality: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    model = model_for(modality)
    files = [path for path in sorted(TREES[tree].rglob("*")) if path.is_file()]
    assert len(files) > 60  # the premise: the package holds its files

    counts = Counter(outcome(path, model) for path in files)

    assert sum(counts.values()) == len(files)
    assert set(counts) <= {"read", *(f"UCSEG-E{number}" for number in (101, 103, 104, 105, 121))}, counts
    assert (counts["read"] > 0) == (tree == "pydicom" and modality == "CT"), (
        counts
    )  # the DICOMDIRs there stand for a CT
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_whole_tree_of_pydicom_holds_one_volume() -> None:
    """Five slices of a CT that pydicom keeps for its DICOMDIR tests."""
    with found_in(TREES["pydicom"], model_for("CT"), WHATEVER_FITS) as found:
        assert isinstance(found, FoundSeries)
        series, rejected = found.selection.chosen, found.selection.rejected

    assert series.number_of_instances == 5
    assert len(rejected) > 30
    assert all(item.reason for item in rejected)
    assert outcome(TREES["pydicom"], model_for("CT")) == "read"


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_whole_tree_of_pydicom_data_is_refused_with_all_reasons(modality: str) -> None:
    with (
        pytest.raises(InputError, match="series can be segmented"),
        found_in(TREES["pydicom-data"], model_for(modality), WHATEVER_FITS),
    ):
        pass
