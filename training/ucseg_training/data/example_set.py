"""A small real data set to try training with: three public CTs, laid out as a user's own would be."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import yaml

from ucseg_runtime.errors import OutputError
from ucseg_runtime.packaged_data import fetch
from ucseg_training.data.demo_cases import TOTALSEGMENTATOR, extract

LIST_NAME = "cases.json"
SPEC_NAME = "liver.yaml"

_LIVER = 5
_LARGEST_IDENTIFIER = 117
_FILES = {
    "b_ct.nii.gz": "example_ct.nii.gz",
    "b_labels.nii.gz": "example_seg_fast_force_split.nii.gz",
    "c_ct": "example_ct_dicom",
    "c_labels.nii.gz": "example_seg_dicom.nii.gz",
    "d_ct.nii.gz": "aorta_report/example_ct.nii.gz",
}
_CASES = [
    {"name": "B", "patient": "B", "image": "b_ct.nii.gz", "label": "b_labels.nii.gz", "split": "train"},
    {"name": "D", "patient": "D", "image": "d_ct.nii.gz", "split": "unlabelled"},
    {"name": "C", "patient": "C", "image": "c_ct", "label": "c_labels.nii.gz", "split": "val"},
]
_SPEC = {
    "name": "liver-example",
    "title": "Liver on three CTs of totalsegmentator 2.18.0; labels are output of the TotalSegmentator network",
    "modality": "CT",
    "dim": 3,
    "activation": "sigmoid",
    "classes": [
        {
            "label": 1,
            "name": "liver",
            "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
            "type": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"},
            "colour_rgb": [221, 130, 101],
        }
    ],
    "preprocessing": {
        "spacing_mm": [6.0, 6.0, 6.0],
        "intensity": {"kind": "clip_min_max", "low": -200.0, "high": 250.0},
        "padding_value": -1000.0,
    },
    "tiling": {"tile_shape": [32, 48, 48]},
    "postprocessing": {"largest_component": [1]},
    "labels": {
        "kind": "values",
        "values": {identifier: int(identifier == _LIVER) for identifier in range(1, _LARGEST_IDENTIFIER + 1)},
    },
    "batch_size": 2,
}


def write_example_set(folder: Path) -> tuple[Path, Path]:
    """Fetch the images and write them with a list of cases and a description.

    Args:
        folder: Receives everything; made when missing.

    Returns:
        Paths of the list and of the description.

    Raises:
        InputError: The images cannot be fetched.
        OutputError: The folder cannot be written.
    """
    archive = fetch(TOTALSEGMENTATOR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as extracted:
            extract(archive, Path(extracted))
            reference = Path(extracted) / "totalsegmentator-2.18.0" / "tests" / "reference_files"
            for target, source in _FILES.items():
                copy = shutil.copytree if (reference / source).is_dir() else shutil.copyfile
                if not (folder / target).exists():
                    copy(reference / source, folder / target)
        cases, spec = folder / LIST_NAME, folder / SPEC_NAME
        cases.write_text(json.dumps(_CASES, indent=2) + "\n", encoding="utf-8")
        spec.write_text(yaml.safe_dump(_SPEC, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the example cannot be written ({type(error).__name__}).", hint="Give another folder."
        ) from error
    return cases, spec
