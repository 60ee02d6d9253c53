"""Where engines that were built on site are kept: outside the model folder, under everything that they depend on.

An engine is code for one GPU, made from one model by one release of one builder. It is loaded only if all of these and
the digest of its file are those of the record beside it; nothing is rebuilt silently.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ucseg_runtime.errors import EngineMismatchError, OutputError
from ucseg_runtime.json_text import json_text
from ucseg_runtime.manifest import MERGED

RECORD_NAME = "engines.json"

_DIGEST_PREFIX = 16
_BUILD_DIGITS = 8
"""With as many, engine, version, precision, device and the note that the gate was skipped fit into one DICOM LO."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on.

    Attributes:
        model_digest: SHA-256 of the manifest.
        builder: ``tensorrt`` or ``tensorrt_rtx``.
        version: Of the builder.
        compute_capability: Of the GPU, such as ``8.6``.
        precision: ``fp32``, ``tf32``, ``fp16``, ``int8`` or ``fp8``.
        max_batch: Most tiles of a call.
        calibration: SHA-256 of the tiles that int8 and fp8 were calibrated on; empty for the others. Not part of the
            name of the folder: a new calibration replaces the old one.
    """

    model_digest: str
    builder: str
    version: str
    compute_capability: str
    precision: str
    max_batch: int
    calibration: str = ""

    @property
    def folder_name(self) -> str:
        """A name that no other key has, but for the calibration."""
        parts = (
            self.model_digest[:_DIGEST_PREFIX],
            f"{self.builder}-{self.version}",
            f"sm{self.compute_capability.replace('.', '')}",
            self.precision,
            f"batch{self.max_batch}",
        )
        return "_".join(parts)


@dataclass(frozen=True)
class BuiltEngines:
    """Engines of a model that lie in the folder of all engines.

    Attributes:
        key: What they depend on.
        build: First digits of the digest of the merged one; another build has others, even of the same graph.
    """

    key: EngineKey
    build: str


class _Record(BaseModel):
    """The whole of ``engines.json``: the key, and what each file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: EngineKey
    sha256: dict[str, str]
    layers: dict[str, dict[str, int]]


def save_engines(
    root: Path,
    key: EngineKey,
    plans: Mapping[str, bytes],
    graphs: Mapping[str, bytes],
    layers: Mapping[str, Mapping[str, int]],
) -> Path:
    """Write the engines of a model, all or none; earlier ones of the same key are replaced.

    Args:
        root: Folder of all engines.
        key: What these depend on.
        plans: Serialised engines by artifact key of the graph.
        graphs: The ONNX files that they were built from, in the precision that they have.
        layers: Number of layers by kind and precision, by artifact key; for people.

    Returns:
        Folder of these engines.

    Raises:
        OutputError: They cannot be written.
    """
    target = root / key.folder_name
    digests = {name: hashlib.sha256(plan).hexdigest() for name, plan in plans.items()}
    record = _Record(key=key, sha256=digests, layers={name: dict(counts) for name, counts in layers.items()})
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as folder:
            complete = Path(folder) / "engines"
            complete.mkdir()
            for name, plan in plans.items():
                (complete / f"{name}.plan").write_bytes(plan)
                (complete / f"{name}.onnx").write_bytes(graphs[name])
            (complete / RECORD_NAME).write_text(json_text(record.model_dump()) + "\n", encoding="utf-8")
            if target.exists():
                shutil.move(target, Path(folder) / "old")
            complete.replace(target)
    except OSError as error:
        raise OutputError(
            f"the engines cannot be written ({type(error).__name__}).", hint="Check space and permissions of --out."
        ) from error
    return target


def find_engines(root: Path, wanted: EngineKey) -> tuple[BuiltEngines, ...]:
    """Engines for any number of tiles a call and of any calibration, that for the fewest tiles first.

    Args:
        root: Folder of all engines; need not exist.
        wanted: What they must depend on, but for `max_batch` and `calibration`.

    Raises:
        EngineMismatchError: A record of such engines cannot be read.
    """
    prefix = wanted.folder_name.removesuffix(f"{wanted.max_batch}")
    found = _engines_in(root, f"{glob.escape(prefix)}*")
    return tuple(
        built
        for built in found
        if replace(built.key, max_batch=wanted.max_batch, calibration=wanted.calibration) == wanted
    )


def engines_of_model(root: Path, model_digest: str) -> tuple[BuiltEngines, ...]:
    """All engines of a model, whatever built them, in whatever precision and for whichever GPU.

    Args:
        root: Folder of all engines; need not exist.
        model_digest: SHA-256 of the manifest.

    Raises:
        EngineMismatchError: A record of such engines cannot be read.
    """
    found = _engines_in(root, f"{model_digest[:_DIGEST_PREFIX]}_*")
    return tuple(built for built in found if built.key.model_digest == model_digest)


def _engines_in(root: Path, pattern: str) -> list[BuiltEngines]:
    """Engines of the folders that fit a pattern, those for the fewest tiles first."""
    records = []
    for file in sorted(root.glob(f"{pattern}/{RECORD_NAME}")):
        with contextlib.suppress(FileNotFoundError):  # another process is building it anew
            records.append(_read_record(file))
    whole = [record for record in records if MERGED in record.sha256]
    found = [BuiltEngines(record.key, record.sha256[MERGED][:_BUILD_DIGITS]) for record in whole]
    return sorted(found, key=lambda built: built.key.max_batch)


def _read_record(file: Path) -> _Record:
    try:
        return _Record.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise EngineMismatchError(
            f"the record of the built engines cannot be read ({type(error).__name__}).",
            hint="Build them again: ucseg-export tensorrt MODEL_DIR.",
        ) from error


def load_engine_plan(root: Path, key: EngineKey, name: str) -> bytes:
    """One serialised engine, verified.

    Args:
        root: Folder of all engines.
        key: What the engine must have been built for.
        name: Artifact key of the graph, such as ``merged``.

    Raises:
        EngineMismatchError: There is none for this key, or its record or digest says otherwise.
    """
    folder = root / key.folder_name
    try:
        record = _read_record(folder / RECORD_NAME)
        plan = (folder / f"{name}.plan").read_bytes()
    except FileNotFoundError as error:
        raise EngineMismatchError(
            f"there is no {key.builder} {key.version} engine of {name} for compute capability "
            f"{key.compute_capability} in {key.precision}.",
            hint="Build it: ucseg-export tensorrt MODEL_DIR.",
        ) from error
    except OSError as error:
        raise EngineMismatchError(
            f"the engine of {name} cannot be read ({type(error).__name__}).", hint="Build it again."
        ) from error
    wrong = [field for field, value in vars(key).items() if getattr(record.key, field) != value]
    if wrong or record.sha256.get(name) != hashlib.sha256(plan).hexdigest():
        what = f"was built for another {', '.join(wrong)}" if wrong else "is not the file that its record names"
        raise EngineMismatchError(
            f"the engine of {name} {what}.", hint="Build it again: ucseg-export tensorrt MODEL_DIR."
        )
    return plan
