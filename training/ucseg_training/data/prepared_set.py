"""All cases of a data set as samples on disk: prepared once, checked before the first step, read as they are needed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ucseg_runtime.errors import InputError, OutputError
from ucseg_training.data.case_list import TRAINING, CaseEntry
from ucseg_training.data.dataset_spec import DatasetSpec, Split
from ucseg_training.data.preparation import prepare_case
from ucseg_training.data.sample import FORMAT, Sample, StoredSample, inspect_sample, load_sample, save_sample

_LOG = logging.getLogger(__name__)

PREPARATION_VERSION = 1
"""Raised by any change that makes other samples from the same files; samples made before are not used then."""

Progress = Callable[[int, int], None]
"""Called with the number of cases that are done and the number of all cases."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class RefusedCase:
    """A case that was left out.

    Attributes:
        ordinal: Place in the list, from 1.
        total: Cases in the list.
        name: As the user gave it.
        code: Stable identifier of the reason.
        reason: For people.
    """

    ordinal: int
    total: int
    name: str
    code: str
    reason: str


@dataclass(frozen=True)
class SampleFile:
    """A sample that is read when it is needed.

    Attributes:
        name: Of the case, and the slice if it is one.
        case: Of the case alone.
        patient: Who it is of; part of no message.
        split: What it is for.
        shape: Of the image, (channels, *spatial).
        path: Where it lies.
        z: The slice of the volume in the file; None for all of it.
    """

    name: str
    case: str
    patient: str = field(repr=False)
    split: Split
    shape: tuple[int, ...]
    path: Path = field(repr=False)
    z: int | None = None

    def load(self) -> Sample:
        """Read it; raises InputError where the file is not there any more or damaged."""
        return load_sample(self.path, self.case, self.patient, self.z)


@dataclass(frozen=True)
class PreparedSet:
    """A data set, ready for training.

    Attributes:
        samples: In the order of the list. Volumes are one sample each; for networks of planes, every slice of a
            training volume is a sample, while volumes to be scored stay whole.
        refused: Cases that were left out.
    """

    samples: tuple[SampleFile, ...]
    refused: tuple[RefusedCase, ...] = ()

    def of(self, split: Split) -> tuple[SampleFile, ...]:
        """The samples of one split."""
        return tuple(sample for sample in self.samples if sample.split == split)


def prepare_cases(
    entries: Sequence[CaseEntry],
    spec: DatasetSpec,
    folder: Path,
    *,
    skip_bad_cases: bool = False,
    progress: Progress | None = None,
) -> PreparedSet:
    """Prepare every case that has not been prepared before, and check all of them.

    Args:
        entries: From `find_cases`.
        spec: The data set.
        folder: Keeps the samples under a digest of their source files and of everything that the preparation depends
            on; made when missing.
        skip_bad_cases: Leave out what cannot be used and list it, instead of refusing the data set.
        progress: Told after every case.

    Raises:
        InputError: A case cannot be used: its files are missing or damaged, its label does not fit, its name or its
            pixels occur twice. Or nothing is left to train on.
        OutputError: A sample cannot be written.
    """
    started = time.monotonic()
    preparation = _Preparation(spec, _made(folder))
    samples: list[SampleFile] = []
    refused: list[RefusedCase] = []
    for done, entry in enumerate(entries, start=1):
        try:
            samples += preparation.prepare(entry)
        except InputError as error:
            if not skip_bad_cases:
                raise _named(error, entry) from error
            refused.append(RefusedCase(entry.ordinal, entry.total, entry.name, error.code, str(error)))
            _LOG.warning("%s is left out: %s", entry.where, error)
        if progress is not None:
            progress(done, len(entries))
    if not any(sample.split == "train" for sample in samples):
        raise InputError(
            f"no labelled training case is left; {len(refused)} of {len(entries)} cases cannot be used.",
            hint="Correct the cases that are listed as left out." if refused else "Check the splits of the list.",
        )
    _LOG.info("%d samples of %d cases, %.1f s", len(samples), len(entries) - len(refused), time.monotonic() - started)
    return PreparedSet(tuple(samples), tuple(refused))


class _Preparation:
    """The preparation of one data set after another case: what was seen before matters for duplicates."""

    def __init__(self, spec: DatasetSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._names: dict[tuple[str, str], CaseEntry] = {}
        self._pixels: dict[str, list[CaseEntry]] = {}

    def prepare(self, entry: CaseEntry) -> list[SampleFile]:
        if entry.problem:
            raise InputError(f"{entry.problem}.")
        earlier = self._names.setdefault((entry.pool, entry.name), entry)
        if earlier is not entry:
            raise InputError(f"{earlier.where} has the same name.", hint="Give every case a name of its own.")
        path = self._folder / f"{_key(entry, self._spec)}.safetensors"
        stored = _usable(path) or self._make(entry, path)
        self._refuse_copies(entry, stored)
        return _sample_files(entry, stored, self._spec)

    def _make(self, entry: CaseEntry, path: Path) -> StoredSample:
        prepared = prepare_case(entry, self._spec)
        save_sample(prepared.sample, path, prepared.pixel_digest)
        return inspect_sample(path)

    def _refuse_copies(self, entry: CaseEntry, stored: StoredSample) -> None:
        earlier = self._pixels.setdefault(stored.pixel_digest, [])
        for other in earlier:
            # The same case may be used to choose the weights and to score them; find_cases warns of that.
            if other.pool == entry.pool or "training" in (other.pool, entry.pool):
                raise InputError(
                    f"its pixels are those of {other.where}.",
                    hint="Keep one of the two; copies would leak or count twice.",
                )
        earlier.append(entry)


def _sample_files(entry: CaseEntry, stored: StoredSample, spec: DatasetSpec) -> list[SampleFile]:
    whole = SampleFile(entry.name, entry.name, entry.patient, entry.split, stored.shape, stored.path)
    if spec.dim == 3 or len(stored.shape) == 3 or entry.split not in TRAINING:
        return [whole]
    channels, slices, *plane = stored.shape
    return [
        SampleFile(
            f"{entry.name} slice {z + 1}", entry.name, entry.patient, entry.split, (channels, *plane), stored.path, z
        )
        for z in range(slices)
    ]


def _usable(path: Path) -> StoredSample | None:
    """A sample that was made before; None where there is none, or a damaged one that is then made again."""
    if not path.is_file():
        return None
    try:
        return inspect_sample(path)
    except InputError:
        _LOG.warning("a prepared sample is damaged and is made again")
        return None


def _key(entry: CaseEntry, spec: DatasetSpec) -> str:
    """SHA-256 over the source files and everything that the preparation depends on."""
    sha256 = hashlib.sha256(_settings(entry, spec).encode())
    for what, path in [*(("its image", image) for image in entry.images), ("its label", entry.label)]:
        if path is not None:
            sha256.update(_digest_of(path, what))
    return sha256.hexdigest()


def _settings(entry: CaseEntry, spec: DatasetSpec) -> str:
    relevant = spec.model_dump(
        mode="json",
        include={"modality", "dim", "channels", "preprocessing", "labels", "structures", "hdf5", "crop", "seed"},
    )
    classes = [(item.label, item.name) for item in spec.classes]
    cut = entry.name if entry.split in TRAINING and spec.crop is not None else ""
    labelled = entry.label is not None
    return json.dumps(
        [FORMAT, PREPARATION_VERSION, relevant, classes, cut, labelled, len(entry.images)], sort_keys=True
    )


def _digest_of(path: Path, what: str) -> bytes:
    if not path.exists():
        raise InputError(f"{what} does not exist.", hint="Check the data set's folder and its lists.")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    sha256 = hashlib.sha256()
    try:
        for file in files:
            sha256.update(f"{file.stat().st_size}/".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    sha256.update(chunk)
    except OSError as error:
        raise InputError(f"{what} cannot be read ({type(error).__name__}).") from error
    return sha256.digest()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder of prepared samples cannot be made ({type(error).__name__}).") from error
    return folder


def _named(error: InputError, entry: CaseEntry) -> InputError:
    hint = f"{error.hint} " if error.hint else ""
    return type(error)(
        f"{entry.where}: {error.message}", hint=f"{hint}Or go on without such cases: --skip-bad-cases.", code=error.code
    )
