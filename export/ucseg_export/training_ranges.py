"""What the figures of the training cases were: measured with the exported model, and put into its manifest.

The deployed flow segments every labelled training case as it was acquired, and what is measured of the result is what
will be measured of every case that is decided upon (`ucseg_runtime.case_figures`). So the ranges say how the model
behaves on what it knows. Labels are not looked at. Of cases without labels the image alone is measured: their result
may be anything. Cases that taught the weights look surer than others do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ucseg_export.prove import REFERENCE
from ucseg_runtime.backends import open_backend
from ucseg_runtime.case_figures import case_figures, image_figures
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.manifest import MANIFEST_NAME, manifest_from_json
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import segment_volume
from ucseg_runtime.segmentation import measure, ready_to_write
from ucseg_runtime.training_ranges import TrainingRanges, ranges_over
from ucseg_runtime.volume import Volume
from ucseg_training.data.case_list import TRAINING, find_cases
from ucseg_training.data.presets import load_dataset_spec
from ucseg_training.data.readers import read_case

_OPTIONS = replace(REFERENCE, keep_probabilities=False, skip_air=True, subnet_agreement=True)
"""As users segment, on the reference implementation of ONNX in float32, stage by stage for the subnets' agreement."""


def training_volumes(data: Path, spec_name: str) -> Iterator[tuple[Volume, bool]]:
    """The training cases of a data set as they were acquired, and whether they are labelled.

    Args:
        data: Folder or list of the data set.
        spec_name: Preset or YAML file that describes it.

    Raises:
        InputError: There is none, a case cannot be read, or the cases are no volumes in modality units.
    """
    spec = load_dataset_spec(spec_name)
    entries = [entry for entry in find_cases(data, spec) if entry.split in TRAINING]
    if not entries:
        raise InputError("the data set has no training case.", hint="Give the data set that the model was trained on.")
    for entry in entries:
        source = read_case(entry, spec)
        if source.from_hdf5 or spec.channels != 1 or spec.dim != 3:
            raise InputError(
                f"{entry.where} is no volume as it was acquired.",
                hint="Ranges are measured of volumes with one channel, from DICOM or NIfTI files.",
            )
        yield Volume(source.image.voxels[0], source.image.geometry, spec.modality), entry.label is not None


def measure_ranges(model: Model, cases: Iterable[tuple[Volume, bool]]) -> TrainingRanges:
    """Measure every training case; those that are labelled are segmented.

    Args:
        model: Verified model folder.
        cases: At least one volume, each with whether it is labelled.

    Raises:
        InputError: There is no case.
        BackendError: The reference engine is missing or cannot run the model.
    """
    with open_backend(model, _OPTIONS, staged=True) as backend:
        measured = []
        for volume, labelled in cases:
            if labelled:
                segmentation = segment_volume(volume, model.manifest, backend, _OPTIONS)
                measured.append(case_figures(volume, ready_to_write(segmentation), measure(segmentation)))
            else:
                measured.append(image_figures(volume))
    if not measured:
        raise InputError("there is no training case to measure.")
    return ranges_over(measured)


def write_ranges(folder: Path, ranges: TrainingRanges) -> None:
    """Put ranges into the manifest of a model folder, whose digest changes; all else of it stays byte for byte.

    Raises:
        ManifestError: The manifest is malformed.
        OutputError: It cannot be written; the old one is still there.
    """
    path, part = folder / MANIFEST_NAME, folder / f".{MANIFEST_NAME}.part"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["training_ranges"] = ranges.model_dump(mode="json")
        text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n"
        manifest_from_json(text)
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{MANIFEST_NAME} of the model folder cannot be written ({type(error).__name__}).",
            hint="Copy the model folder to a place where it can be written.",
        ) from error
