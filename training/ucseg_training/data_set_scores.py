"""Scores of a checkpoint on the held-out part of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ucseg_runtime.arrays import UInt8Array
from ucseg_runtime.errors import InputError
from ucseg_runtime.volume import Volume
from ucseg_training.data.case_list import CaseEntry, find_cases
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.preparation import in_input_units, prepare_case, prepare_source
from ucseg_training.data.presets import load_dataset_spec
from ucseg_training.data.readers import read_case
from ucseg_training.data.source import SourceCase
from ucseg_training.evaluate import (
    Scorable,
    evaluate_acdc_as_paper,
    evaluate_as_paper,
    evaluate_planes_as_paper,
    evaluate_sample,
    evaluate_volume,
    load_scorable,
)
from ucseg_training.scoring import ScoreRow
from ucseg_training.torch_backend import DECIDED


def score_data_set(
    checkpoint: Path,
    data: Path,
    spec_name: str,
    split: Literal["val", "test"],
    *,
    paper: bool = False,
    largest_component: bool | None = None,
) -> Iterator[ScoreRow]:
    """Score every case of one split, one after the other.

    Volumes of one channel are scored on their own grid through the deployed flow; pictures, planes and HDF5 files,
    which hold normalised voxels, on the grid that the networks see.

    Args:
        checkpoint: What `ucseg-train` wrote.
        data: Folder or list of the data set.
        spec_name: Preset or YAML file that describes it.
        split: Which part.
        paper: Whether windows, rules and scores are those of the paper.
        largest_component: As for `evaluate_as_paper`.

    Raises:
        InputError: A case cannot be read or has no label, or the split is empty.
        ModelError: The checkpoint cannot be used.
    """
    model, spec = load_scorable(checkpoint), load_dataset_spec(spec_name)
    entries = [entry for entry in find_cases(data, spec) if entry.split == split]
    if not entries:
        raise InputError(f"the data set has no case in its part {split!r}.", hint="Give another --split.")
    for entry in entries:
        if entry.label is None and spec.hdf5 is None:
            raise InputError(f"{entry.where} has no label to be scored against.")
        yield from _score(model, entry, spec, paper, largest_component)


def _score(
    model: Scorable, entry: CaseEntry, spec: DatasetSpec, paper: bool, largest_component: bool | None
) -> Iterator[ScoreRow]:
    if paper and spec.dim == 2:
        source = read_case(entry, spec)
        image, truth = in_input_units(source, spec), _label_of(source, entry)
        if spec.activation == "softmax":
            return evaluate_acdc_as_paper(model, entry.name, image[0], truth)
        return evaluate_planes_as_paper(model, entry.name, image, truth, largest_component=bool(largest_component))
    if paper:
        return evaluate_as_paper(model, prepare_case(entry, spec).sample, largest_component=largest_component)
    source = read_case(entry, spec)
    # Of HDF5 files the voxels are normalised already, and colours and planes are not deployed as volumes.
    if spec.dim == 3 and spec.channels == 1 and not source.from_hdf5:
        volume = Volume(source.image.voxels[0], source.image.geometry, spec.modality)
        return evaluate_volume(model, entry.name, volume, _label_of(source, entry), DECIDED)
    sample = prepare_source(source, spec, entry.name, entry.patient)
    return evaluate_sample(model, sample, spec.preprocessing.spacing_mm, DECIDED)


def _label_of(source: SourceCase, entry: CaseEntry) -> UInt8Array:
    if source.label_map is None:
        raise InputError(f"{entry.where} has no label to be scored against.")
    return source.label_map
