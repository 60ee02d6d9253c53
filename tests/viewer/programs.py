"""The programs that the tests in a viewer need, unpacked into the cache folder and installed nowhere.

Orthanc with its DICOMweb plug-in and a headless Chromium come from Debian (apt verifies their signatures), the OHIF
viewer from npm (its digest is checked here). apt gets lists and archives of its own below the cache folder, so neither
root nor a change of the machine is needed. Where a package is installed already, the installed one is used.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.cache import cache_folder

DEBIAN_PACKAGES = ("chromium-headless-shell", "orthanc", "orthanc-dicomweb")
OHIF_PACKAGE = "@ohif/app@3.13.2"
OHIF_ARCHIVE = "ohif-app-3.13.2.tgz"
OHIF_SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
FETCH_TIMEOUT_S = 180.0


class ProgramsUnreachableError(Exception):
    """A program is not on this machine and cannot be fetched from here; the message names it and says why."""


@dataclass(frozen=True)
class ViewerPrograms:
    """What is needed to look at DICOM in a browser.

    Attributes:
        unpacked: Root of the unpacked Debian packages.
        ohif: Folder with the viewer's ``index.html``.
    """

    unpacked: Path
    ohif: Path

    @property
    def chromium(self) -> Path:
        """Browser without windows."""
        return self._file("usr/lib/chromium/chromium-headless-shell")

    @property
    def orthanc(self) -> Path:
        """DICOM server."""
        return self._file("usr/sbin/Orthanc")

    @property
    def dicomweb_plugin(self) -> Path:
        """Orthanc's DICOMweb interface."""
        return self._file("usr/share/orthanc/plugins/libOrthancDicomWeb.so")

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which the unpacked programs find their libraries and DICOM's dictionary."""
        libraries = [*self.unpacked.glob("usr/lib/*-linux-gnu"), *self.unpacked.glob("usr/lib/*-linux-gnu/pulseaudio")]
        dictionaries = self.unpacked.glob("usr/share/libdcmtk*/dicom.dic")
        found = {"LD_LIBRARY_PATH": libraries, "DCMDICTPATH": dictionaries}
        return {**os.environ, **{name: os.pathsep.join(map(str, paths)) for name, paths in found.items()}}

    def _file(self, name: str) -> Path:
        unpacked = self.unpacked / name
        return unpacked if unpacked.exists() else Path("/") / name


def install_programs() -> ViewerPrograms:
    """Fetch and unpack what is not in the cache yet.

    Raises:
        ProgramsUnreachableError: apt or npm is missing, or could not fetch a package.
        ValueError: npm served another archive than the checked one.
    """
    return ViewerPrograms(
        unpacked=_unpacked_debian_packages(), ohif=unpack_npm_package(OHIF_PACKAGE, OHIF_ARCHIVE, OHIF_SHA256) / "dist"
    )


def unpack_npm_package(package: str, archive: str, sha256: str) -> Path:
    """Folder in the cache with the content of a package from npm; none of its code is run.

    Args:
        package: Name and exact version.
        archive: Name of the file that ``npm pack`` writes.
        sha256: Digest of that file.

    Raises:
        ProgramsUnreachableError: npm is missing or could not fetch the package.
        ValueError: The archive is not the one that was checked.
    """
    target = cache_folder() / f"npm-{archive.removesuffix('.tgz')}-{sha256[:12]}"
    if target.is_dir():
        return target
    with _staging(target) as staging:
        _fetch(package, ["npm", "pack", package, "--pack-destination", str(staging), "--cache", str(staging / "npm")])
        with (staging / archive).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"the archive of {package} has SHA-256 {found[:12]}…, expected {sha256[:12]}…")
        unpack = ["tar", "--extract", f"--file={staging / archive}", f"--directory={staging}", "--exclude=*.map"]
        subprocess.run(unpack, check=True)
        (staging / "package").rename(target)
    return target


def _unpacked_debian_packages() -> Path:
    target = cache_folder() / f"debian-{hashlib.sha256(' '.join(DEBIAN_PACKAGES).encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    with _staging(target) as staging:
        archives = staging / "cache" / "archives"
        for folder in (archives / "partial", staging / "lists" / "partial", staging / "root"):
            folder.mkdir(parents=True)
        settings = {
            "Dir::State": staging,
            "Dir::State::lists": staging / "lists",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": staging / "cache",
            "Debug::NoLocking": "true",  # the locks are the machine's, and nothing of the machine is changed
            "Acquire::http::Timeout": "20",
        }
        apt_get = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in settings.items())]
        wanted = " ".join(DEBIAN_PACKAGES)
        said = _fetch("Debian's package lists", [*apt_get, "update"])  # succeeds although a mirror is out of reach
        install = [*apt_get, "install", "--yes", "--download-only", "--no-install-recommends", *DEBIAN_PACKAGES]
        _fetch(wanted, install, said)
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", archive, staging / "root"], check=True)  # noqa: S607
        (staging / "root").rename(target)
    return target


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".viewer-") as folder:
        yield Path(folder)


def _fetch(what: str, command: Sequence[str], before: str = "") -> str:
    """Run a command and return its messages; those of `before` are repeated when it fails."""
    try:
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_S
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ProgramsUnreachableError(f"{what}: {error}") from error
    if finished.returncode != 0:
        said = [line for line in (before + finished.stderr).splitlines() if line.strip() and "unsandboxed" not in line]
        raise ProgramsUnreachableError(f"{command[0]} could not fetch {what}: {' | '.join([*said[:1], *said[-1:]])}")
    return finished.stderr
