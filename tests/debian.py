"""Programs from Debian, unpacked into the cache folder and installed nowhere.

apt verifies the signatures of what it fetches. It gets lists and archives of its own below the cache folder, so neither
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

FETCH_TIMEOUT_S = 180.0


class ProgramsUnreachableError(Exception):
    """A program is not on this machine and cannot be fetched from here; the message names it and says why."""


@dataclass(frozen=True)
class DebianPrograms:
    """Programs of some packages.

    Attributes:
        unpacked: Root of the unpacked packages.
    """

    unpacked: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which the unpacked programs find their libraries and DICOM's dictionary."""
        libraries = [*self.unpacked.glob("usr/lib/*-linux-gnu"), *self.unpacked.glob("usr/lib/*-linux-gnu/pulseaudio")]
        dictionaries = self.unpacked.glob("usr/share/libdcmtk*/dicom.dic")
        found = {"LD_LIBRARY_PATH": libraries, "DCMDICTPATH": dictionaries}
        return {**os.environ, **{name: os.pathsep.join(map(str, paths)) for name, paths in found.items()}}

    def file(self, name: str) -> Path:
        """A file of the packages by its path, in the unpacked ones or on the machine."""
        unpacked = self.unpacked / name
        return unpacked if unpacked.exists() else Path("/") / name


def unpacked_debian_packages(packages: Sequence[str]) -> Path:
    """Folder in the cache with some packages and what they need, fetched once.

    Raises:
        ProgramsUnreachableError: apt is missing, or could not fetch a package.
    """
    target = cache_folder() / f"debian-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    with staging_beside(target) as staging:
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
        wanted = " ".join(packages)
        said = fetch("Debian's package lists", [*apt_get, "update"])  # succeeds although a mirror is out of reach
        install = [*apt_get, "install", "--yes", "--download-only", "--no-install-recommends", *packages]
        fetch(wanted, install, said)
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", archive, staging / "root"], check=True)  # noqa: S607
        try:
            (staging / "root").rename(target)
        except OSError:
            if not target.is_dir():  # another run was not faster
                raise
    return target


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".programs-") as folder:
        yield Path(folder)


def fetch(what: str, command: Sequence[str], before: str = "") -> str:
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
