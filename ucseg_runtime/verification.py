"""The chain from a training run to a result, link by link: what is proven, what is broken, what cannot be checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ucseg_runtime.accuracy_gate import EngineProof
from ucseg_runtime.config import WHATEVER_FITS, InputOptions
from ucseg_runtime.dicom.provenance import identity_of, objection
from ucseg_runtime.dicom.reader import files_sha256
from ucseg_runtime.errors import BackendUnavailableError, InputError, ModelError, UcsegError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.inputs import FoundSeries, found_in
from ucseg_runtime.manifest import CHECKPOINT_SHA256, MANIFEST_NAME, TRAINING_PLAN_SHA256
from ucseg_runtime.model_folder import Model, available_models, load_model, signature_text
from ucseg_runtime.publish import RECORD, RESULT_NAMES
from ucseg_runtime.signatures import configured_trust_store, trusted_signer
from ucseg_runtime.site_secret import SITE_SECRET_VARIABLE, has_own_secret, is_sealed

State = Literal["proven", "broken", "not checked"]

_SCHEMA_VERSION = 1
_MAX_RECORD_BYTES = 1 << 26
_ANY_GAP = 1 << 20
_SERVED = "triton-"


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Attributes:
        name: What holds together: ``record``, ``results``, ``objects``, ``images``, ``model``, ``signature``,
            ``engine``, ``training``.
        state: What came out.
        text: Why, in a sentence.
    """

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Evidence:
    """What a result is compared with, besides its own record.

    Attributes:
        model: Model folder; found by its digest among those that ship with ucseg when not given.
        images: The source images.
        volume: Which one of a series that holds several; see `InputOptions`.
        checkpoint: The file that was exported.
    """

    model: Path | None = None
    images: Path | None = None
    volume: int = 0
    checkpoint: Path | None = None


@dataclass(frozen=True)
class _Recorded:
    folder: Path
    record: Mapping[str, Any]
    identity: RunIdentity


def verify_results(folder: Path, evidence: Evidence) -> tuple[Link, ...]:
    """Check a folder of results against everything that it claims to come from.

    Args:
        folder: Holds ``record.json``.
        evidence: What it is compared with.

    Raises:
        InputError: There is no record, or none that can be read.
    """
    recorded = _recorded(folder)
    model, model_link = _model(recorded, evidence.model)
    links = [_record(recorded), _results(recorded), _objects(recorded), _images(recorded, model, evidence), model_link]
    if model is None:
        missing = "the model is not at hand"
        return (*links, *(Link(name, "not checked", missing) for name in ("signature", "engine", "training")))
    return (*links, _signature(model), _engine(recorded, model), _training(model, evidence.checkpoint))


def _recorded(folder: Path) -> _Recorded:
    try:
        path = folder / RECORD
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise ValueError
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != _SCHEMA_VERSION or not isinstance(record["outputs"], Mapping):
            raise ValueError
        if not isinstance(record.get("input", {}), Mapping):
            raise ValueError
        return _Recorded(folder, record, identity_of(record["identity"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the folder has no {RECORD} of version {_SCHEMA_VERSION} that can be read: nothing in it is proven.",
            hint="Give the folder of one series that ucseg wrote.",
            code="UCSEG-E153",
        ) from error


def _record(recorded: _Recorded) -> Link:
    """Word for word what this site sealed."""
    if not has_own_secret():
        return Link("record", "not checked", f"{SITE_SECRET_VARIABLE} is not set, so anybody could have sealed it")
    if not is_sealed(recorded.record):
        return Link("record", "broken", "it was changed, or sealed under another secret than that of this site")
    return Link("record", "proven", "it is word for word what this site sealed")


def _results(recorded: _Recorded) -> Link:
    """Every file is the one that the record names, and there is no other result beside them."""
    outputs = recorded.record["outputs"]
    unknown = [name for name in outputs if name not in RESULT_NAMES]
    wrong = [name for name in outputs if name not in unknown and not _is_file_of(recorded.folder / name, outputs[name])]
    strangers = [
        name for name in RESULT_NAMES if name not in outputs and name != RECORD and (recorded.folder / name).exists()
    ]
    for what, names in (("unknown", unknown), ("missing or changed", wrong), ("not in the record", strangers)):
        if names:
            return Link("results", "broken", f"{what}: {', '.join(sorted(map(repr, names)))}")
    return Link("results", "proven", f"{len(outputs)} files have the sizes and digests of the record")


def _is_file_of(path: Path, figures: Any) -> bool:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return bool(found == figures["sha256"] and path.stat().st_size == figures["size"])
    except (OSError, KeyError, TypeError):
        return False


def _objects(recorded: _Recorded) -> Link:
    """Every DICOM object says the same as the record, under the UID that follows from it."""
    names = [name for name in recorded.record["outputs"] if name.endswith(".dcm") and name in RESULT_NAMES]
    sources = recorded.record.get("source_sop_uids")
    if not names or not isinstance(sources, list):
        return Link("objects", "not checked", "there are no DICOM objects")
    for name in names:
        if why := objection(recorded.folder / name, recorded.identity, sources):
            return Link("objects", "broken", f"{name}: {why}")
    return Link(
        "objects",
        "proven",
        f"{len(names)} DICOM objects name this model, engine and version, under the UIDs that follow",
    )


def _images(recorded: _Recorded, model: Model | None, evidence: Evidence) -> Link:
    expected = recorded.record.get("input", {}).get("files_sha256") or recorded.record.get("image_sha256")
    if evidence.images is None or model is None or not expected:
        return Link("images", "not checked", "give --images and have the model at hand to compare the source images")
    series_uid = recorded.record.get("series_uid")
    wanted = InputOptions(series_uid, evidence.volume, _ANY_GAP) if series_uid else WHATEVER_FITS
    try:
        with found_in(evidence.images, model.manifest, wanted) as found:
            sha256 = files_sha256(found.selection.chosen) if isinstance(found, FoundSeries) else found.sha256
    except BackendUnavailableError as error:
        return Link("images", "not checked", str(error))
    except UcsegError as error:
        return Link(
            "images", "broken", f"they cannot be read as the series of the record: {error.code} {error.message}"
        )
    if sha256 != expected:
        return Link("images", "broken", "their bytes are not those that were segmented")
    return Link("images", "proven", "their bytes are those that were segmented")


def _model(recorded: _Recorded, folder: Path | None) -> tuple[Model | None, Link]:
    digest = recorded.identity.model_digest
    folders = [folder] if folder else [item for item in available_models().values() if _manifest_sha256(item) == digest]
    if not folders:
        return None, Link("model", "not checked", f"give --model: none that ships with ucseg is {digest[:12]}…")
    try:
        model = load_model(folders[0], whoever_made_it=True)
    except ModelError as error:
        return None, Link("model", "broken", f"{error.code} {error.message}")
    if model.digest != digest:
        return None, Link("model", "broken", f"it is {model.digest[:12]}…; the record says {digest[:12]}…")
    files = len(model.manifest.artifacts)
    return model, Link("model", "proven", f"the manifest is that of the record, and {files} files are those it names")


def _manifest_sha256(folder: Path) -> str:
    with (folder / MANIFEST_NAME).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(model: Model) -> Link:
    try:
        store = configured_trust_store()
        if store is None:
            return Link("signature", "not checked", "no trust store is configured (UCSEG_TRUST_STORE)")
        signer = trusted_signer(signature_text(model.folder), model.digest, model.calibration.digest, store)
    except BackendUnavailableError as error:
        return Link("signature", "not checked", str(error))
    except ModelError as error:
        return Link("signature", "broken", error.message)
    return Link("signature", "proven", f"key {signer[:12]}… of the trust store vouches for the model")


def _engine(recorded: _Recorded, model: Model) -> Link:
    """The engine has passed the accuracy gate for this very model."""
    engine = recorded.identity.engine
    named = f"{engine.name} {engine.version} {engine.precision} {engine.device}"
    proofs = [item for item in model.proofs.engines if _is_about(item, recorded.identity)]
    if not engine.proven:
        return Link("engine", "broken", f"{named} was run without the accuracy gate")
    if not proofs:
        return Link("engine", "broken", f"the model folder has no proof for {named}")
    if why := proofs[0].objection(model.manifest.budget(proofs[0].precision)):
        return Link("engine", "broken", f"{named}: {why}")
    return Link("engine", "proven", f"{named} passed the accuracy gate on {len(proofs[0].cases)} case(s)")


def _is_about(proof: EngineProof, identity: RunIdentity) -> bool:
    engine = replace(identity.engine, name=identity.engine.name.removeprefix(_SERVED))
    return proof.precision == engine.precision and proof.is_about(
        engine.name, engine.version, proof.precision, engine.device
    )


def _training(model: Model, checkpoint: Path | None) -> Link:
    """The model was exported from this checkpoint."""
    provenance = model.manifest.provenance
    expected, plan = provenance.get(CHECKPOINT_SHA256), provenance.get(TRAINING_PLAN_SHA256)
    if expected is None:
        return Link("training", "not checked", "the manifest names no checkpoint")
    if checkpoint is None:
        return Link("training", "not checked", f"give --checkpoint to compare it with {expected[:12]}…")
    try:
        with checkpoint.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Link("training", "broken", f"the checkpoint cannot be read ({type(error).__name__})")
    if found != expected:
        return Link("training", "broken", f"the checkpoint is {found[:12]}…; the manifest says {expected[:12]}…")
    run = f", made by the training plan {plan[:12]}…" if plan else ""
    return Link("training", "proven", f"the checkpoint is the one that was exported{run}")
