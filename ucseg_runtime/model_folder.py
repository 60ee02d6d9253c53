"""Model folders: where they are, and the proof that one holds exactly what its manifest names."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ucseg_runtime.accuracy_gate import PROOFS_NAME, Proofs, proofs_from_json
from ucseg_runtime.calibration import CALIBRATION_NAME, NO_CALIBRATION, FoundCalibration, calibration_from_json
from ucseg_runtime.errors import ArtifactMismatchError, ManifestError, ModelError
from ucseg_runtime.manifest import MANIFEST_NAME, Artifact, Manifest, manifest_from_json
from ucseg_runtime.onnx_scan import objections
from ucseg_runtime.signatures import SIGNATURE_NAME, configured_trust_store, trusted_signer, unsigned_allowed

DEMO_MODEL = "torso-ct-demo"

_MAX_MANIFEST_BYTES = 1 << 20
_DIGEST_PREFIX = 12
_RESTORE = "Restore the folder from where it came from, or export the model again."


@dataclass(frozen=True)
class Model:
    """A model folder of which every file was verified.

    Attributes:
        manifest: What the model fixes.
        folder: Where its files are.
        digest: SHA-256 of ``manifest.json``, 64 hexadecimal digits. The manifest names the digest of every other file,
            so this one stands for the whole folder.
        proofs: Which engines have shown that they decide like the reference; not part of the digest.
        calibration: What probabilities and uncertainty are worth; not part of the digest.
        signer: SHA-256 of the trusted key that vouches for it; empty where no trust store is configured, or where the
            caller takes models that nobody vouches for.
    """

    manifest: Manifest
    folder: Path
    digest: str
    proofs: Proofs
    calibration: FoundCalibration = NO_CALIBRATION
    signer: str = ""

    def graph(self, key: str) -> bytes:
        """Content of one artifact, verified again, so that nothing unverified can reach an engine.

        Raises:
            ArtifactMismatchError: The file is missing, refused, or not the one that the manifest names.
        """
        return _verified(self.folder, key, self.manifest.artifacts[key])


def load_model(folder: Path, *, whoever_made_it: bool = False) -> Model:
    """Read a model folder and verify every file that its manifest names. Nothing of it is executed.

    Args:
        folder: The model folder.
        whoever_made_it: Whether the trust store of the site does not matter: for a model that is being made, looked at,
            or part of this package.

    Raises:
        UntrustedModelError: A trust store is configured, and none of its keys vouches for the model.
        ManifestError: The manifest is missing, malformed or of an unknown schema version; or proofs or calibration are
            malformed.
        ArtifactMismatchError: A file is missing, is not a plain file of this folder, differs from the manifest in size
            or digest, is not ONNX, or refers to anything outside itself.
    """
    try:
        content = _read_plain_file(folder / MANIFEST_NAME, _MAX_MANIFEST_BYTES)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"the model folder has no readable {MANIFEST_NAME}.", hint=_RESTORE) from error
    manifest = manifest_from_json(text)
    for key, artifact in manifest.artifacts.items():
        _refuse_foreign_parts(key, _verified(folder, key, artifact))
    digest = hashlib.sha256(content).hexdigest()
    calibration = calibration_beside(folder, digest, manifest)
    signer = "" if whoever_made_it else _signer(folder, digest, calibration)
    return Model(manifest, folder, digest, _proofs(folder, digest), calibration, signer)


def available_models(extra: Path | None = None) -> dict[str, Path]:
    """Model folders by name: those that ship with ucseg and those of a folder of the user's.

    Args:
        extra: Folder that holds model folders; one of them hides a shipped one of the same name.

    Returns:
        Name of the folder to its path, in alphabetical order. The folders are not verified.
    """
    shipped = Path(str(resources.files("ucseg_runtime"))) / "models"
    roots = [shipped] if extra is None else [shipped, extra]
    found = {item.parent.name: item.parent for root in roots for item in root.glob(f"*/{MANIFEST_NAME}")}
    return dict(sorted(found.items()))


def find_model(name: str, extra: Path | None = None) -> Path:
    """Folder of the model of this name; see `available_models`.

    Raises:
        ModelError: There is none; the message lists the names that there are.
    """
    models = available_models(extra)
    if name not in models:
        raise ModelError(f"there is no model {name!r}; found: {', '.join(models) or 'none'}.")
    return models[name]


def default_model_folder() -> Path:
    """Folder of the demo model that ships with ucseg.

    Raises:
        ModelError: The installation is incomplete.
    """
    return find_model(DEMO_MODEL)


def calibration_beside(folder: Path, digest: str, manifest: Manifest) -> FoundCalibration:
    """What probabilities and uncertainty of the model in a folder are worth; `NO_CALIBRATION` where nobody measured.

    Args:
        folder: Where the manifest lies.
        digest: SHA-256 of the manifest.
        manifest: The same, parsed.

    Raises:
        ManifestError: The calibration cannot be read, or has other classes.
    """
    text = _text_beside(folder, CALIBRATION_NAME)
    if text is None:
        return NO_CALIBRATION
    return calibration_from_json(text, digest, [item.label for item in manifest.classes])


def signature_text(folder: Path) -> str | None:
    """Content of the signature that lies in a model folder; None where there is none.

    Raises:
        ManifestError: It cannot be read.
    """
    return _text_beside(folder, SIGNATURE_NAME)


def _signer(folder: Path, digest: str, calibration: FoundCalibration) -> str:
    store = configured_trust_store()
    if store is None:
        return ""
    text = signature_text(folder)
    return trusted_signer(text, digest, calibration.digest, store, allow_unsigned=unsigned_allowed())


def _proofs(folder: Path, digest: str) -> Proofs:
    text = _text_beside(folder, PROOFS_NAME)
    return Proofs(model_digest=digest) if text is None else proofs_from_json(text, digest)


def _text_beside(folder: Path, name: str) -> str | None:
    """A file beside the manifest that is not part of the digest; None where there is none."""
    try:
        return _read_plain_file(folder / name, _MAX_MANIFEST_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"the model folder has no readable {name}.", hint=_RESTORE) from error


def _verified(folder: Path, key: str, artifact: Artifact) -> bytes:
    try:
        content = _read_plain_file(folder / artifact.file, artifact.size)
    except OSError as error:
        reason = error.strerror or "refused"
        raise ArtifactMismatchError(f"artifact {key} cannot be read: {reason}.", hint=_RESTORE) from error
    if len(content) != artifact.size:
        raise ArtifactMismatchError(
            f"artifact {key} has {len(content)} bytes or more; the manifest says {artifact.size}.", hint=_RESTORE
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != artifact.sha256:
        raise ArtifactMismatchError(
            f"artifact {key} has SHA-256 {digest[:_DIGEST_PREFIX]}…; "
            f"the manifest says {artifact.sha256[:_DIGEST_PREFIX]}….",
            hint=_RESTORE,
        )
    return content


def _refuse_foreign_parts(key: str, content: bytes) -> None:
    try:
        found = objections(content)
    except ValueError as error:
        raise ArtifactMismatchError(f"artifact {key} is not an ONNX file: {error}.", hint=_RESTORE) from error
    if found:
        raise ArtifactMismatchError(
            f"artifact {key} has {' and '.join(sorted(found))}; only standard operators with weights inside are run.",
            hint="Export the model again into single files.",
        )


def _read_plain_file(path: Path, limit: int) -> bytes:
    """Content of a regular file, at most one byte more than `limit`; links, pipes and devices raise OSError."""
    # Without O_NONBLOCK opening a pipe would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)
