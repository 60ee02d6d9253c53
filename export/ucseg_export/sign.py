"""Sign a model folder with a private key of its maker; see `ucseg_runtime.signatures`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ucseg_export.files_beside import write_beside_manifest
from ucseg_runtime.errors import InputError, OutputExistsError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.signatures import SIGNATURE_NAME, Signature, require_cryptography, signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAKE_KEY = "Make one: openssl genpkey -algorithm ed25519 -out key.pem."
_CODE = "UCSEG-E136"


def sign_model(folder: Path, key: Path, password: str | None = None, *, overwrite: bool = False) -> Signature:
    """Verify a model folder and put a signature of it beside its manifest.

    Args:
        folder: Model folder.
        key: PEM file with an Ed25519 private key.
        password: Of the key, if it is encrypted.
        overwrite: Whether a signature that is there is replaced.

    Raises:
        ModelError: The folder is not what its manifest says.
        InputError: There is no usable private key in the file.
        OutputExistsError: There is a signature already.
        OutputError: The signature cannot be written; the old one is still there.
    """
    model = load_model(folder, whoever_made_it=True)
    if (folder / SIGNATURE_NAME).exists() and not overwrite:
        raise OutputExistsError(f"the model folder has a {SIGNATURE_NAME} already.", hint="Give --overwrite.")
    signature = signed(model.digest, model.calibration.digest, private_key(key, password))
    write_beside_manifest(folder, SIGNATURE_NAME, signature.as_json())
    return signature


def private_key(path: Path, password: str | None) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        InputError: The file cannot be read, the password is missing or wrong, or it is a key of another kind.
        BackendUnavailableError: The package cryptography is not installed.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except OSError as error:
        raise InputError(f"the key cannot be read ({type(error).__name__}).", hint=_MAKE_KEY, code=_CODE) from error
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        # TypeError: encrypted and no password, or the other way round.
        raise InputError(
            "the file holds no private key that this password opens.",
            hint=f"An encrypted key takes its password from UCSEG_KEY_PASSWORD. {_MAKE_KEY}",
            code=_CODE,
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("the key is of another kind than Ed25519.", hint=_MAKE_KEY, code=_CODE)
    return key
