"""The programs that the tests in a viewer need, unpacked into the cache folder and installed nowhere.

Orthanc with its DICOMweb plug-in and a headless Chromium come from Debian, the OHIF viewer from npm (its digest is
checked here).
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.debian import fetch, staging_beside, unpacked_debian_packages
from tests.orthanc import OrthancPrograms
from ucseg_runtime.cache import cache_folder

DEBIAN_PACKAGES = ("chromium-headless-shell", "orthanc", "orthanc-dicomweb")
OHIF_PACKAGE = "@ohif/app@3.13.2"
OHIF_ARCHIVE = "ohif-app-3.13.2.tgz"
OHIF_SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"


@dataclass(frozen=True)
class BrowserPrograms(OrthancPrograms):
    """A browser, and an archive."""

    @property
    def chromium(self) -> Path:
        """Browser without windows."""
        return self.file("usr/lib/chromium/chromium-headless-shell")


@dataclass(frozen=True)
class ViewerPrograms(BrowserPrograms):
    """What is needed to look at DICOM in a browser.

    Attributes:
        ohif: Folder with the viewer's ``index.html``.
    """

    ohif: Path


def install_browser() -> BrowserPrograms:
    """Fetch and unpack what is not in the cache yet.

    Raises:
        ProgramsUnreachableError: apt is missing, or could not fetch a package.
    """
    return BrowserPrograms(unpacked=unpacked_debian_packages(DEBIAN_PACKAGES))


def install_programs() -> ViewerPrograms:
    """Fetch and unpack what is not in the cache yet, the OHIF viewer too.

    Raises:
        ProgramsUnreachableError: apt or npm is missing, or could not fetch a package.
        ValueError: npm served another archive than the checked one.
    """
    return ViewerPrograms(
        unpacked=install_browser().unpacked,
        ohif=unpack_npm_package(OHIF_PACKAGE, OHIF_ARCHIVE, OHIF_SHA256) / "dist",
    )


def unpack_npm_package(package: str, archive: str, digest: str) -> Path:
    """Folder in the cache with the content of a package from npm; none of its code is run.

    Args:
        package: Name and exact version.
        archive: Name of the file that ``npm pack`` writes.
        digest: Of that file, hexadecimal: SHA-256, or SHA-512 as npm itself publishes it.

    Raises:
        ProgramsUnreachableError: npm is missing or could not fetch the package.
        ValueError: The archive is not the one that was checked.
    """
    target = cache_folder() / f"npm-{archive.removesuffix('.tgz')}-{digest[:12]}"
    algorithm = "sha512" if len(digest) == 128 else "sha256"
    if target.is_dir():
        return target
    with staging_beside(target) as staging:
        fetch(package, ["npm", "pack", package, "--pack-destination", str(staging), "--cache", str(staging / "npm")])
        with (staging / archive).open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found != digest:
            name = algorithm.upper().replace("SHA", "SHA-")
            raise ValueError(f"the archive of {package} has {name} {found[:12]}…, expected {digest[:12]}…")
        unpack = ["tar", "--extract", f"--file={staging / archive}", f"--directory={staging}", "--exclude=*.map"]
        subprocess.run(unpack, check=True)
        try:
            (staging / "package").rename(target)
        except OSError:
            if not target.is_dir():  # another run was not faster
                raise
    return target
