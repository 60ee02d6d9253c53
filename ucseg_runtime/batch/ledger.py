"""Whether the results of a series are there, whole, and those of this very run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.publish import RECORD


@dataclass(frozen=True)
class Expected:
    """What a record must say for its series to be done.

    Attributes:
        run: Identity and settings of the run, as the record holds them; parts that are not known yet are left out.
        content: Digest of the input.
    """

    run: Mapping[str, object]
    content: str


def why_not_done(folder: Path, expected: Expected) -> str:
    """Why a series has to be segmented, in one word or two; empty where it is done.

    Nothing but the record is believed: its words, and the digests of the results that it lists.

    Args:
        folder: Where the results of the series belong.
        expected: What would be written now.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        outputs = record["outputs"]
        content = record["input"]["content"]
        changed = [name for name, value in expected.run.items() if not _holds(record.get(name), value)]
    except FileNotFoundError:
        return "new"
    except (OSError, ValueError, KeyError, TypeError):
        return "record unreadable"
    if content != expected.content:
        return "input changed"
    if changed:
        return f"{changed[0]} changed"
    if not all(_is_whole(folder / name, figures) for name, figures in outputs.items()):
        return "results damaged"
    return ""


def input_sha256_of(folder: Path) -> str:
    """What the record of a finished series says of the bytes of its input."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return str(record["input"]["files_sha256"])


def _holds(found: object, expected: object) -> bool:
    """Whether `found` says everything that `expected` says; it may say more."""
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(_holds(found.get(name), value) for name, value in expected.items())
    return found == expected


def _is_whole(path: Path, figures: Mapping[str, object]) -> bool:
    try:
        if path.stat().st_size != figures["size"]:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == figures["sha256"]
    except OSError:
        return False
