"""Signatures of model folders: who vouches for a model, and whether this site trusts them.

A signature is Ed25519 over the digest of the manifest, which names the digest of every graph, and over that of the
calibration, which decides; so one signature stands for all but the proofs, which are made on site. It lies beside the
manifest in ``signature.json`` and is no part of the digest. A site trusts the public keys of one folder, its trust
store. Without a trust store signatures are not looked at.

Source: Ed25519 of RFC 8032, by the package cryptography.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ucseg_runtime.errors import BackendUnavailableError, UntrustedModelError
from ucseg_runtime.json_text import json_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_NAME = "signature.json"
TRUST_STORE_VARIABLE = "UCSEG_TRUST_STORE"
ALLOW_UNSIGNED_VARIABLE = "UCSEG_ALLOW_UNSIGNED"

_PURPOSE = b"ucseg model folder, version 1\n"
"""Before what is signed, so that a signature made for something else never counts for a model."""

_MAX_KEY_BYTES = 1 << 16
_SIGN = "Sign it with ucseg-export sign, or use it all the same with ucseg --allow-unsigned COMMAND."
_ADD_KEY = (
    "Add the public key of its signer to the trust store, or use it all the same with ucseg --allow-unsigned COMMAND."
)
_DAMAGED = f"Restore {SIGNATURE_NAME} from where the model came from, or sign the model again."

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Signature(BaseModel):
    """The whole of ``signature.json``.

    Attributes:
        schema_version: Of this layout.
        algorithm: The only one there is.
        key: SHA-256 of the 32 bytes of the public key, 64 hexadecimal digits.
        model_digest: SHA-256 of the manifest that was signed.
        calibration: Digest of the calibration beside it, see `FoundCalibration`; empty where there was none.
        signature: 64 bytes in base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    algorithm: Literal["ed25519"] = "ed25519"
    key: Digest
    model_digest: Digest
    calibration: Digest | Literal[""] = ""
    signature: str

    def as_json(self) -> str:
        """The text of the file."""
        return json_text(self.model_dump(mode="json")) + "\n"


@dataclass(frozen=True)
class TrustStore:
    """The public keys that a site trusts, by their SHA-256."""

    keys: Mapping[str, Ed25519PublicKey]


def signature_from_json(text: str) -> Signature:
    """Parse ``signature.json``.

    Raises:
        UntrustedModelError: The text is not JSON or breaks the schema.
    """
    try:
        return Signature.model_validate(json.loads(text))
    except (json.JSONDecodeError, ValidationError) as error:
        raise UntrustedModelError(
            f"{SIGNATURE_NAME} of the model folder breaks its schema ({type(error).__name__}).", hint=_DAMAGED
        ) from error


def signed(model_digest: str, calibration: str, key: Ed25519PrivateKey) -> Signature:
    """The signature of a model under a private key.

    Args:
        model_digest: SHA-256 of the manifest, 64 hexadecimal digits.
        calibration: Digest of its calibration; empty where there is none.
        key: Of the signer.
    """
    signature = base64.b64encode(key.sign(_message(model_digest, calibration))).decode("ascii")
    digest = key_digest(key.public_key())
    return Signature(key=digest, model_digest=model_digest, calibration=calibration, signature=signature)


def key_digest(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 bytes of a public key, 64 hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def check_signature(signature: Signature, model_digest: str, calibration: str, key: Ed25519PublicKey) -> None:
    """Refuse a signature that its signer did not make for this model.

    Args:
        signature: What lies beside the manifest.
        model_digest: Of the manifest that is there.
        calibration: Digest of the calibration that is there; empty where there is none.
        key: The public key that the signature names.

    Raises:
        UntrustedModelError: Another model was signed, or the signature is false.
    """
    from cryptography.exceptions import InvalidSignature

    if signature.model_digest != model_digest:
        raise UntrustedModelError(
            f"{SIGNATURE_NAME} is about the model {signature.model_digest[:12]}…; this one is {model_digest[:12]}….",
            hint=_DAMAGED,
        )
    if signature.calibration != calibration:
        raise UntrustedModelError(
            f"the calibration of the model is not the one that key {signature.key[:12]}… signed.",
            hint="Restore it, remove it if none was signed, or sign the model again.",
        )
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), _message(model_digest, calibration))
    except (InvalidSignature, ValueError) as error:  # ValueError: no base64
        raise UntrustedModelError(
            f"the signature of the model under key {signature.key[:12]}… is false.", hint=_DAMAGED
        ) from error


def trusted_signer(
    text: str | None, model_digest: str, calibration: str, store: TrustStore, *, allow_unsigned: bool = False
) -> str:
    """The key of the store that vouches for a model.

    Args:
        text: Content of ``signature.json``; None where there is none.
        model_digest: Of the manifest that is there.
        calibration: Digest of the calibration that is there; empty where there is none.
        store: Keys that count.
        allow_unsigned: Whether a model passes for which no key of the store vouches. A false signature never does.

    Returns:
        SHA-256 of the public key; empty where none of the store vouches for the model, and that is allowed.

    Raises:
        UntrustedModelError: There is no signature, none by a key of the store, or a false one.
    """
    if text is None:
        if allow_unsigned:
            return ""
        raise UntrustedModelError("the model is not signed, and a trust store is configured.", hint=_SIGN)
    signature = signature_from_json(text)
    key = store.keys.get(signature.key)
    if key is None:
        if allow_unsigned:
            return ""
        raise UntrustedModelError(
            f"the model is signed with key {signature.key[:12]}…, which is none of the {len(store.keys)} in the "
            "trust store.",
            hint=_ADD_KEY,
        )
    check_signature(signature, model_digest, calibration, key)
    return signature.key


def unsigned_allowed(environment: Mapping[str, str] | None = None) -> bool:
    """Whether ``UCSEG_ALLOW_UNSIGNED`` is 1, as ``--allow-unsigned`` sets it for a command and its children."""
    return (os.environ if environment is None else environment).get(ALLOW_UNSIGNED_VARIABLE) == "1"


def configured_trust_store(environment: Mapping[str, str] | None = None) -> TrustStore | None:
    """The trust store of the site: the PEM files of the folder that ``UCSEG_TRUST_STORE`` names.

    Args:
        environment: Where to look; the environment of the process when not given.

    Returns:
        None where no trust store is configured.

    Raises:
        UntrustedModelError: The folder cannot be read, holds no key, or a file of it is no Ed25519 public key.
        BackendUnavailableError: The package cryptography is not installed.
    """
    folder = (os.environ if environment is None else environment).get(TRUST_STORE_VARIABLE)
    return trust_store(Path(folder)) if folder else None


def trust_store(folder: Path) -> TrustStore:
    """Read the public keys of a folder, files ``*.pem``; see `configured_trust_store`."""
    try:
        files = [(path.stat().st_size, path) for path in sorted(folder.glob("*.pem"))]
        contents = [path.read_bytes() for size, path in files if size <= _MAX_KEY_BYTES]
    except OSError as error:
        raise _bad_store(f"cannot be read: {error.strerror or 'refused'}") from error
    if not contents or len(contents) != len(files):
        raise _bad_store("holds no *.pem file" if not files else "holds a *.pem file of more than 64 KiB")
    keys = [_public_key(content, number) for number, content in enumerate(contents, start=1)]
    return TrustStore({key_digest(key): key for key in keys})


def require_cryptography() -> None:
    """Check that signatures can be made and verified here.

    Raises:
        BackendUnavailableError: The package cryptography is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            "signatures need the package cryptography.", hint="Install it: pip install 'ucseg[signing]'."
        ) from error


def _public_key(content: bytes, number: int) -> Ed25519PublicKey:
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_store(f"has no public key in its PEM file {number}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_store(f"has a key of another kind than Ed25519 in its PEM file {number}")
    return key


def _bad_store(what: str) -> UntrustedModelError:
    return UntrustedModelError(
        f"the trust store {what}.",
        hint=f"{TRUST_STORE_VARIABLE} must name a folder with Ed25519 public keys as *.pem files.",
    )


def _message(model_digest: str, calibration: str) -> bytes:
    return _PURPOSE + f"{model_digest}\n{calibration}\n".encode("ascii")
