"""Keys and trust stores, made up."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def write_key(folder: Path, name: str, password: str = "") -> Path:
    """A private key `name`.pem in PKCS 8; its public half lies in the folder `name`, which is a trust store."""
    key = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path = folder / f"{name}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    (folder / name).mkdir()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / name / "key.pem").write_bytes(public)
    return path
