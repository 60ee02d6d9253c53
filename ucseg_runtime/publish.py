"""All results of one series or none: staged beside their targets, renamed when complete, the record last.

A folder with a ``record.json`` whose digests match the files is a finished series, and nothing else proves that: the
record is taken away before the first file is replaced, and put back after the last. A run that is killed in between is
undone by the next one that looks at the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ucseg_runtime.config import OutputOptions
from ucseg_runtime.errors import OutputError, OutputExistsError
from ucseg_runtime.json_text import json_text
from ucseg_runtime.safe_files import synchronise, write_checked
from ucseg_runtime.site_secret import sealed

SEGMENTATION = "segmentation.dcm"
UNCERTAINTY = "uncertainty.dcm"
REPORT = "report.dcm"
MONTAGE = "montage.png"
STRUCTURES = "structures.dcm"
PREVIEW = "preview.dcm"
PAGE = "report.html"
THUMBNAIL = "thumbnail.png"
TIMELINE = "timeline.csv"
LABELS_NIFTI = "labels.nii.gz"
UNCERTAINTY_NIFTI = "uncertainty.nii.gz"
LABELS_NRRD = "labels.nrrd"
UNCERTAINTY_NRRD = "uncertainty.nrrd"
RECORD = "record.json"

RESULT_NAMES = (
    *(SEGMENTATION, UNCERTAINTY, REPORT, STRUCTURES, MONTAGE, PREVIEW, TIMELINE, PAGE, THUMBNAIL),
    *(LABELS_NIFTI, UNCERTAINTY_NIFTI, LABELS_NRRD, UNCERTAINTY_NRRD),
    RECORD,
)
"""Every name that a run may write, in the order of publication."""

_STAGING_PREFIX = ".ucseg-staging-"
_ASIDE = "old"
_HEADERS_BYTES = 20_000_000
_PAGE_BYTES = 25_000_000


def check_output_folder(folder: Path, overwrite: bool, needed_bytes: int = 0) -> None:
    """Check before any work that results can be written. What killed runs left behind is undone and removed.

    Args:
        folder: Folder for the results; need not exist.
        overwrite: Whether earlier results may be replaced.
        needed_bytes: Space that the results will take; see `space_needed`.

    Raises:
        OutputExistsError: The folder holds a file with the name of a result, and `overwrite` is False.
        OutputError: The path is no folder, cannot be written, or its disk has too little space.
    """
    with reported_as_output_error():
        existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise OutputError("the output path or one above it is not a folder.", hint="Give another --out.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError("the output folder cannot be written (no permission).", hint="Give another --out.")
        _sweep(folder)
        _check_names(folder, overwrite)
        _check_space(existing, needed_bytes)


def space_needed(shape: tuple[int, int, int], classes: int, outputs: OutputOptions) -> int:
    """Bytes that the results of one series take at most, and half as much in reserve.

    Args:
        shape: Voxels of the source grid along (z, y, x).
        classes: Foreground classes of the model.
        outputs: Which objects are written.
    """
    bytes_per_voxel = {"binary": classes / 8, "labelmap": 1, "fractional": classes}[outputs.seg_type] + 2
    bytes_per_voxel += 3 * len(outputs.extras & {"nifti", "nrrd"}) + ("rtstruct" in outputs.extras)
    page_bytes = _PAGE_BYTES * ("report" in outputs.extras)
    return int(1.5 * (math.prod(shape) * bytes_per_voxel + _HEADERS_BYTES + page_bytes))


@contextmanager
def staged_results(folder: Path, overwrite: bool, needed_bytes: int = 0) -> Iterator[Staging]:
    """A place to write results to, out of sight until they are published.

    What was not published when the statement ends, however it ends, is removed. Runs that still go on in the same
    folder are left alone, and so are foreign files.

    Args:
        folder: Folder for the results; made when missing, readable by its owner alone.
        overwrite: Whether earlier results may be replaced.
        needed_bytes: Space that the results will take; see `space_needed`.

    Raises:
        OutputExistsError: See `check_output_folder`.
        OutputError: See `check_output_folder`; or the operating system failed while results were written.
    """
    check_output_folder(folder, overwrite, needed_bytes)
    with reported_as_output_error(), _made_folders(folder), _staging_folder(folder) as hidden:
        yield Staging(folder, hidden, overwrite)


class Staging:
    """The hidden folder of one run.

    Args:
        folder: Where results are published.
        hidden: Where they are written first, on the same disk.
        overwrite: Whether earlier results may be replaced.
    """

    def __init__(self, folder: Path, hidden: Path, overwrite: bool) -> None:
        self._folder = folder
        self._hidden = hidden
        self._overwrite = overwrite

    def path(self, name: str) -> Path:
        """Where the result called `name` is to be written; one of `RESULT_NAMES` but the record."""
        if name not in RESULT_NAMES or name == RECORD:
            raise ValueError(f"{name} is not the name of a result")
        return self._hidden / name

    def fingerprints(self) -> dict[str, dict[str, str | int]]:
        """Digest and size of everything that was written so far, by name, in the order of publication."""
        names = [name for name in RESULT_NAMES if (self._hidden / name).is_file()]
        return {name: _fingerprint(self._hidden / name) for name in names}

    def publish(self, record: Mapping[str, object]) -> tuple[str, ...]:
        """Move everything that was written to the output folder, with a record of it; or change nothing.

        Earlier results are replaced, and removed where this run has none of that name.

        Args:
            record: What JSON can hold; NaN becomes null. Sizes and digests of the files are added as ``outputs``, and a
                seal over all of it; see `site_secret`.

        Returns:
            Names of the published files, the record last.

        Raises:
            OutputExistsError: Results appeared in the folder meanwhile, and they may not be replaced.
            OutputError: The operating system failed; the folder is as it was.
        """
        with reported_as_output_error():
            fingerprints = self.fingerprints()
            names = list(fingerprints)
            self._write_record({**record, "outputs": fingerprints})
            for name in (*names, RECORD):
                os.chmod(self._hidden / name, 0o600)
                synchronise(self._hidden / name)
            with locked(self._folder):
                _check_names(self._folder, self._overwrite)
                _swap(self._folder, self._hidden, names)
        return (*names, RECORD)

    def _write_record(self, record: Mapping[str, object]) -> None:
        write_checked(self._hidden / RECORD, f"{json_text(sealed(record))}\n".encode())


def _swap(folder: Path, hidden: Path, names: Sequence[str]) -> None:
    """Put the old results aside, the record first, and the new ones in place, the record last."""
    aside = hidden / _ASIDE
    aside.mkdir(mode=0o700)
    try:
        for name in reversed(RESULT_NAMES):
            if os.path.lexists(folder / name):
                os.replace(folder / name, aside / name)
        for name in names:
            os.replace(hidden / name, folder / name)
        synchronise(folder)
        os.replace(hidden / RECORD, folder / RECORD)
        synchronise(folder)
        _require_published(folder, names)
    except BaseException:
        if not os.path.lexists(hidden / RECORD):
            os.replace(folder / RECORD, hidden / RECORD)
        _undo_swap(folder, hidden)
        raise


def _require_published(folder: Path, names: Sequence[str]) -> None:
    """The folder must hold the new results and none of the old ones: a share may say that it renamed, and did not."""
    found = {name for name in RESULT_NAMES if os.path.lexists(folder / name)}
    if found != {*names, RECORD}:
        raise OutputError(
            "the disk of the output folder did not rename files as it said.",
            hint="Run it again, or give another --out.",
        )


def _undo_swap(folder: Path, hidden: Path) -> None:
    """Bring the old results back, unless no swap was begun or it was completed."""
    aside = hidden / _ASIDE
    if not aside.is_dir() or not (hidden / RECORD).is_file():
        return
    for name in json.loads((hidden / RECORD).read_text(encoding="utf-8"))["outputs"]:
        if not os.path.lexists(hidden / name):
            (folder / name).unlink(missing_ok=True)
    for name in RESULT_NAMES:
        if os.path.lexists(aside / name):
            os.replace(aside / name, folder / name)


def _check_names(folder: Path, overwrite: bool) -> None:
    found = [name for name in RESULT_NAMES if os.path.lexists(folder / name)]
    if any((folder / name).is_dir() and not (folder / name).is_symlink() for name in found):
        raise OutputError("the output folder holds a folder with the name of a result.", hint="Give another --out.")
    if found and not overwrite:
        raise OutputExistsError(
            f"the output folder already holds {', '.join(found)}.", hint="Give another --out, or --overwrite."
        )


def _check_space(existing: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise OutputError(
            f"the disk of the output folder has {free / 1e6:.0f} MB left; results need {needed_bytes / 1e6:.0f} MB.",
            hint="Make space, or give another --out.",
        )


@contextmanager
def _made_folders(folder: Path) -> Iterator[None]:
    """A folder with its parents; those that were missing and are empty in the end are gone again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:  # before the first one is made: a signal can come at any time
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
        yield
    finally:
        _remove_if_empty(missing)


def _remove_if_empty(folders: list[Path]) -> None:
    """Innermost first, up to the first one that holds something."""
    for folder in folders:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()


@contextmanager
def _staging_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder that no other run touches, because it stays locked while it is in use."""
    hidden = folder / f"{_STAGING_PREFIX}{secrets.token_hex(8)}"
    with ExitStack() as stack:
        try:  # before the folder is made: a signal can come at any time
            with locked(folder):  # or a sweep could take the new folder for an abandoned one before it is locked
                hidden.mkdir(mode=0o700)
                stack.enter_context(locked(hidden))
            yield hidden
        finally:
            if hidden.is_dir():
                shutil.rmtree(hidden)


def _sweep(folder: Path) -> None:
    """Undo and remove what runs left behind that are gone: their locks went with them."""
    if not folder.is_dir():
        return
    with locked(folder):
        for hidden in folder.glob(f"{_STAGING_PREFIX}*"):
            with ExitStack() as stack:
                try:
                    stack.enter_context(locked(hidden, wait=False))
                except (BlockingIOError, FileNotFoundError):
                    continue  # in use, or removed by its run since it was listed
                if hidden.is_dir():  # its run may have removed it and gone between opening and locking
                    _undo_swap(folder, hidden)
                    shutil.rmtree(hidden)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process; where it is taken, wait or raise BlockingIOError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


@contextmanager
def reported_as_output_error() -> Iterator[None]:
    """Failures of the operating system as `OutputError`, by their kind alone: a path can hold a name."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise OutputError(
            f"the results could not be written: {reason}.", hint="Check space and permissions of the output folder."
        ) from error
