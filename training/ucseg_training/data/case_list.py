"""Which cases a data set has, and what each is for: from its folder, or from a list in JSON or CSV.

Nothing is opened here but lists. Splits are by patient: a list in which a patient of the training cases is also among
the held-out ones is refused.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, get_args

from ucseg_runtime.errors import InputError
from ucseg_training.data.dataset_spec import DatasetSpec, FolderPart, ListPart, Split

_LOG = logging.getLogger(__name__)

TRAINING: tuple[Split, ...] = ("train", "unlabelled")
_HELD_OUT: tuple[Split, ...] = ("val", "test")
_SUFFIXES = (".nii.gz", ".nii", ".h5", ".hdf5", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
_COLUMNS = ("name", "patient", "image", "label", "split")

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class CaseEntry:
    """One case, not yet opened.

    Attributes:
        name: As the user's list has it, or the place in the data set's folder without suffix.
        patient: Who it is of; part of no message.
        images: One file or DICOM folder, or one per channel.
        label: File or DICOM folder; None for a case whose label is not there or not to be looked at.
        split: What it is for.
        problem: Why it cannot be used, as far as that is known already; empty for most.
        ordinal: Place among all cases, from 1.
        total: Number of all cases.
    """

    name: str
    patient: str = field(repr=False)
    images: tuple[Path, ...] = field(repr=False)
    label: Path | None = field(repr=False)
    split: Split
    problem: str = ""
    ordinal: int = 0
    total: int = 0

    @property
    def where(self) -> str:
        """How messages name this case."""
        return f"case {self.ordinal} of {self.total} ({self.name!r})"

    @property
    def pool(self) -> str:
        """``training`` for cases that are learnt from, labelled or not, else the split."""
        return "training" if self.split in TRAINING else self.split


def find_cases(source: Path, spec: DatasetSpec, labelled: str | int | None = None) -> tuple[CaseEntry, ...]:
    """The cases of a data set, in the order of its lists and names.

    Args:
        source: Folder of the data set, laid out as its description says; or a list of cases: a JSON array of objects,
            or a CSV file with a header, with the fields ``name``, ``image`` and, where there are any, ``patient``,
            ``label``, ``split``. Several images, one per channel, are an array in JSON and parted by semicolons in CSV.
            Paths are relative to the list. A case without a split is for training.
        spec: The data set.
        labelled: How many of the training cases are labelled: a number, also as text, or a name from
            `DatasetSpec.labelled`. The first ones are, the labels of the others are not looked at. None: what the
            description uses for folders with lists, else every case that has a label.

    Returns:
        Every case that was named or found; what is wrong with a single one stands in its `problem`.

    Raises:
        InputError: The folder or list cannot be read, holds no case, names an unknown split, or lists a patient both
            for training and to be held out.
    """
    if source.suffix.lower() in (".json", ".csv"):
        entries = [
            _entry_from_row(row, number, source.parent, spec) for number, row in enumerate(_rows(source), start=1)
        ]
    elif source.is_dir():
        entries = [entry for part in spec.layout for entry in _entries_of(part, source, spec)]
    else:
        raise InputError("the data set is neither a folder nor a list in JSON or CSV.")
    if not entries:
        raise InputError(
            "the data set holds no case.", hint="Check the folder, and the layout in the data set's description."
        )
    _refuse_leaks(entries)
    chosen = _with_labelled(entries, _count_of(labelled, spec, source))
    return tuple(replace(entry, ordinal=i, total=len(chosen)) for i, entry in enumerate(chosen, start=1))


def stem(path: Path) -> str:
    """Name of a file without its suffix, ``.nii.gz`` being one; the whole name of a folder."""
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


# Folders


def _entries_of(part: ListPart | FolderPart, root: Path, spec: DatasetSpec) -> list[CaseEntry]:
    return _listed(part, root, spec) if isinstance(part, ListPart) else _in_folders(part, root, spec)


def _listed(part: ListPart, root: Path, spec: DatasetSpec) -> list[CaseEntry]:
    if part.optional and not (root / part.list).exists():
        return []
    try:
        lines = (root / part.list).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the list {part.list} of the data set cannot be read ({type(error).__name__}).",
            hint="Give the folder that holds the lists, or describe another layout.",
        ) from error
    names = [name for line in lines if (name := line.partition(",")[0].strip())]
    if not names:
        raise InputError(f"the list {part.list} of the data set is empty.")
    label = part.label or part.image
    return [
        CaseEntry(
            name=name,
            patient=_patient_of(name, name, spec),
            images=(root / part.image.format(case=name),),
            label=None if part.split == "unlabelled" else root / label.format(case=name),
            split=part.split,
        )
        for name in names
    ]


def _in_folders(part: FolderPart, root: Path, spec: DatasetSpec) -> list[CaseEntry]:
    found = sorted(path for path in root.glob(part.images) if not path.name.startswith("."))
    labels_by_folder = {folder: _labels_in(folder.parent / part.labels) for folder in {path.parent for path in found}}
    return [_in_folder(part, image, labels_by_folder[image.parent], root, spec) for image in found]


def _in_folder(
    part: FolderPart, image: Path, labels: Mapping[str, list[Path]], root: Path, spec: DatasetSpec
) -> CaseEntry:
    name = "/".join((*image.parent.parent.relative_to(root).parts, stem(image)))
    found = [] if part.split == "unlabelled" else labels.get(stem(image), [])
    return CaseEntry(
        name=name,
        patient=_patient_of(stem(image), name, spec),
        images=(image,),
        label=found[0] if len(found) == 1 else None,
        split=part.split,
        problem="" if len(found) == 1 or part.split == "unlabelled" else f"it has {len(found)} labels; expected one",
    )


def _labels_in(folder: Path) -> dict[str, list[Path]]:
    labels: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        labels.setdefault(stem(path), []).append(path)
    return labels


# Lists


def _rows(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"the list of cases cannot be read ({type(error).__name__}).") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError("the list of cases is not a JSON array of objects.")
    return content


def _entry_from_row(row: Row, number: int, folder: Path, spec: DatasetSpec) -> CaseEntry:
    unknown = [str(column) for column in row if column not in _COLUMNS]
    if unknown:
        raise InputError(
            f"case {number} of the list has unknown fields: {', '.join(sorted(unknown))}.",
            hint=f"Fields are {', '.join(_COLUMNS)}.",
        )
    name, label = _text(row, "name", number), _text(row, "label", number)
    images = _images(row, number)
    if not name or not images:
        raise InputError(f"case {number} of the list has no {'image' if name else 'name'}.")
    split = _split_of(_text(row, "split", number), bool(label), number)
    unlabelled = split == "unlabelled"
    return CaseEntry(
        name=name,
        patient=_text(row, "patient", number) or _patient_of(name, name, spec),
        images=tuple(folder / image for image in images),
        label=folder / label if label and not unlabelled else None,
        split=split,
        problem="" if label or unlabelled else f"it has no label and is in the split {split}",
    )


def _images(row: Row, number: int) -> list[str]:
    value = row.get("image")
    if isinstance(value, list):
        if not all(isinstance(item, str) and item for item in value):
            raise InputError(f"case {number} of the list: image is not a path or an array of paths.")
        return value
    return [item.strip() for item in _text(row, "image", number).split(";") if item.strip()]


def _text(row: Row, column: str, number: int) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise InputError(f"case {number} of the list: {column} is {type(value).__name__}; expected text.")
    return (value or "").strip()


def _split_of(text: str, has_label: bool, number: int) -> Split:
    if not text:
        return "train" if has_label else "unlabelled"
    for split in get_args(Split):
        if text == split:
            known: Split = split
            return known
    raise InputError(
        f"case {number} of the list is in an unknown split.", hint=f"Splits are {', '.join(get_args(Split))}."
    )


# Patients and labelled cases


def _patient_of(text: str, name: str, spec: DatasetSpec) -> str:
    if spec.patient is None:
        return name
    match = re.search(spec.patient, text)
    if match is None or match.group(1) is None:
        raise InputError(
            f"the name {name!r} does not say which patient the case is of.",
            hint="Correct the expression `patient` of the description, or name the patients in a list.",
        )
    return match.group(1)


def _refuse_leaks(entries: Sequence[CaseEntry]) -> None:
    training = _patients(entries, TRAINING)
    for split in _HELD_OUT:
        both = len(training & _patients(entries, (split,)))
        if both:
            raise InputError(
                f"the split leaks: {both} patient(s) are in both the training cases and {split}.",
                hint="Keep all cases of a patient in one split.",
            )
    both = len(_patients(entries, ("val",)) & _patients(entries, ("test",)))
    if both:
        _LOG.warning("%d patients are in both val and test: figures of the chosen weights on test are optimistic", both)


def _patients(entries: Iterable[CaseEntry], splits: Sequence[Split]) -> set[str]:
    return {entry.patient for entry in entries if entry.split in splits}


def _count_of(labelled: str | int | None, spec: DatasetSpec, source: Path) -> int | None:
    if isinstance(labelled, int) or (labelled is not None and labelled.isdecimal()):
        return int(labelled)
    if labelled is None:
        listed = source.is_dir() and any(isinstance(part, ListPart) for part in spec.layout)
        labelled = spec.default_labelled if listed else None
        return spec.labelled[labelled] if labelled is not None else None
    if labelled not in spec.labelled:
        raise InputError(
            f"the data set has no number of labelled cases called {labelled!r}.",
            hint=f"Give a number, or one of {', '.join(spec.labelled) or 'none'}.",
        )
    return spec.labelled[labelled]


def _with_labelled(entries: Sequence[CaseEntry], count: int | None) -> list[CaseEntry]:
    """The first `count` training cases keep their labels; the labels of the others are not looked at."""
    train = [entry for entry in entries if entry.split == "train"]
    if count is None:
        return list(entries)
    if not 0 < count <= len(train):
        raise InputError(f"{count} labelled cases are asked for; the data set has {len(train)} for training.")
    hidden = {id(entry) for entry in train[count:]}
    return [replace(entry, split="unlabelled", label=None) if id(entry) in hidden else entry for entry in entries]
