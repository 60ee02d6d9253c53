"""Compiled models kept between runs: a folder that belongs to this user alone, every file checked before it is used.

A compiled model is code and weights, nothing of patients. It is trusted only where nobody else can have written it, and
only if its digest is that of the moment it was kept: OpenVINO 2026.4 takes a file of its own cache with altered weights
without a word. Whatever is missing, damaged or foreign is compiled again; a folder that cannot be used is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class CompiledKey:
    """What a compiled model depends on.

    Attributes:
        graph_sha256: Of the ONNX file, hexadecimal.
        model_digest: SHA-256 of the manifest.
        engine: Name and version of the engine.
        device: What it was compiled for; names the processor.
        settings: Everything else that the engine was told, as text.
    """

    graph_sha256: str
    model_digest: str
    engine: str
    device: str
    settings: str

    @property
    def file_name(self) -> str:
        """A name that no other key has."""
        return hashlib.sha256("\0".join(vars(self).values()).encode()).hexdigest() + ".compiled"


def kept(folder: Path, key: CompiledKey) -> bytes | None:
    """The compiled model of a key; None where there is none that can be trusted."""
    if not _is_private(folder):
        return None
    try:
        content = (folder / key.file_name).read_bytes()
    except OSError:
        return None
    digest, compiled = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(compiled).digest() != digest:
        _LOGGER.info("a kept compiled model is damaged and is compiled again")
        return None
    return compiled


def keep(folder: Path, key: CompiledKey, compiled: bytes) -> None:
    """Keep a compiled model for the next run; the folder is made for this user alone. Does nothing where it cannot."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            _LOGGER.info("compiled models are not kept: the folder does not belong to this user alone")
            return
        # mkstemp makes a file that its owner alone can read.
        descriptor, part = tempfile.mkstemp(dir=folder, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(compiled).digest())
                file.write(compiled)
            os.replace(part, folder / key.file_name)
        finally:
            Path(part).unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.info("compiled models are not kept (%s)", type(error).__name__)


def _is_private(folder: Path) -> bool:
    """Whether it is a folder of this user that nobody else can write to or read."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
