"""Orthanc and dcmtk's tools, for the tests with a real archive."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import unpacked_debian_packages
from tests.orthanc import OrthancPrograms
from tests.processes import LOOPBACK

DEBIAN_PACKAGES = ("orthanc", "orthanc-dicomweb", "dcmtk")


@dataclass(frozen=True)
class PacsPrograms(OrthancPrograms):
    """A DICOM server and a sender that share no code with ucseg."""

    @property
    def storescu(self) -> Path:
        """dcmtk's sender."""
        return self.file("usr/bin/storescu")

    def send(self, files: Sequence[Path], title: str, port: int, calling: str = "SCANNER") -> int:
        """Send files with dcmtk's storescu; its exit code."""
        command = [str(self.storescu), "-aet", calling, "-aec", title, LOOPBACK, str(port), *map(str, files)]
        return subprocess.run(command, env=self.environment, check=False, capture_output=True, timeout=60).returncode


def install_pacs_programs() -> PacsPrograms:
    """Fetch and unpack what is not in the cache yet.

    Raises:
        ProgramsUnreachableError: apt is missing, or could not fetch a package.
    """
    return PacsPrograms(unpacked_debian_packages(DEBIAN_PACKAGES))
