"""`manifest.json`: what the model is, from its description, and which files it consists of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ucseg_runtime.errors import ManifestError
from ucseg_runtime.manifest import SCHEMA_VERSION, Artifact, Manifest, ModelSpec, ParityRow, Quality
from ucseg_training.description import require_fit
from ucseg_training.nets import TrioConfig


def model_spec(description: object, config: TrioConfig) -> ModelSpec:
    """What the model is, checked against the networks.

    Args:
        description: JSON-like value with the fields of `ModelSpec`.
        config: Sizes of the trained networks.

    Raises:
        ManifestError: The description breaks the schema, or describes other networks; every breach is named.
    """
    try:
        spec = ModelSpec.model_validate(description)
    except ValidationError as error:
        raise ManifestError(f"the model's description breaks the schema: {_breaches(error)}.") from error
    require_fit(spec, config)
    return spec


def read_json(path: Path, what: str) -> Any:  # noqa: ANN401  (checked by the caller's schema)
    """Content of a JSON file, or of a file with one JSON value per line as a list.

    Raises:
        ManifestError: The file cannot be read or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"the file of {what} cannot be read ({type(error).__name__}).") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ManifestError(f"the file of {what} is not JSON: {error.msg}.") from error


def quality_rows(values: object) -> tuple[Quality, ...]:
    """Measured quality from JSON-like rows, or from a single one.

    Args:
        values: Rows of the manifest's schema, or of ``ucseg-train evaluate``, of which the manifest keeps the Dice.

    Raises:
        ManifestError: A row breaks the schema, or its Dice is not a number in [0, 1].
    """
    try:
        rows = TypeAdapter(tuple[Quality, ...]).validate_python(
            [_quality_row(row) for row in (values if isinstance(values, list) else [values])]
        )
    except ValidationError as error:
        raise ManifestError(f"the quality rows break the schema: {_breaches(error)}.") from error
    wrong = [index for index, row in enumerate(rows, start=1) if not (0.0 <= row.dice <= 1.0)]
    if wrong:
        raise ManifestError(f"quality row {wrong[0]} of {len(rows)} has a Dice outside [0, 1].")
    return rows


def _quality_row(row: object) -> object:
    """A row of ``ucseg-train evaluate`` in the manifest's words; anything else as it is."""
    if not isinstance(row, dict) or "case" not in row:
        return row
    return {"data_set": row["case"]} | {name: row.get(name) for name in ("segment", "output", "dice")}


def build_manifest(
    spec: ModelSpec, graphs: Mapping[str, bytes], parity: Sequence[ParityRow], provenance: Mapping[str, str]
) -> Manifest:
    """The manifest of a model folder that holds each graph as ``<key>.onnx``.

    Args:
        spec: What the model is.
        graphs: ONNX files by artifact key.
        parity: The proof.
        provenance: Added to the provenance of the description.
    """
    fields = dict(spec)
    fields["provenance"] = {**spec.provenance, **provenance}
    return Manifest(
        **fields,
        schema_version=SCHEMA_VERSION,
        parity=tuple(parity),
        artifacts={key: artifact_of(key, content) for key, content in graphs.items()},
    )


def manifest_json(manifest: Manifest) -> str:
    """The canonical text: sorted keys, two spaces, newline at the end; no NaN, since JSON has none."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def artifact_of(key: str, content: bytes) -> Artifact:
    """How the manifest names a graph."""
    return Artifact(file=f"{key}.onnx", size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _breaches(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'whole'}: {item['msg']}" for item in error.errors())
