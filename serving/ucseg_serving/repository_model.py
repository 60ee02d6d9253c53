"""The model that a repository serves, known from its manifest: the server has the graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ucseg_runtime.accuracy_gate import Proofs
from ucseg_runtime.backends.triton_tensors import VOLUME_MODEL
from ucseg_runtime.errors import RepositoryError
from ucseg_runtime.manifest import MANIFEST_NAME, manifest_from_json
from ucseg_runtime.model_folder import Model, calibration_beside
from ucseg_serving.server_models import MODEL_FOLDER


def repository_model(folder: Path) -> Model:
    """Manifest and calibration that lie in the volume model; no graph is read.

    Args:
        folder: `MODEL_FOLDER` of the volume model.

    Raises:
        ManifestError: Manifest or calibration break their schema.
        RepositoryError: The manifest cannot be read.
    """
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"{VOLUME_MODEL}: {MODEL_FOLDER}/{MANIFEST_NAME} cannot be read.",
            hint="Write the repository again: ucseg-serve repository MODEL_DIR --out REPO --overwrite.",
        ) from error
    manifest, digest = manifest_from_json(text), hashlib.sha256(content).hexdigest()
    return Model(manifest, folder, digest, Proofs(model_digest=digest), calibration_beside(folder, digest, manifest))
