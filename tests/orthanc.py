"""Orthanc on loopback: a DICOM server that shares no code with ucseg."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.debian import DebianPrograms
from tests.processes import LOOPBACK, free_port, running

READY_TIMEOUT_S = 60.0
_BOUNDARY = "ucseg-instances"


@dataclass(frozen=True)
class OrthancPrograms(DebianPrograms):
    """Orthanc and its DICOMweb plug-in."""

    @property
    def orthanc(self) -> Path:
        """DICOM server."""
        return self.file("usr/sbin/Orthanc")

    @property
    def dicomweb_plugin(self) -> Path:
        """Orthanc's DICOMweb interface."""
        return self.file("usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Pacs:
    """A server that is ready.

    Attributes:
        port: Of HTTP on loopback; DICOMweb lies under ``/dicom-web``.
        dicom_port: Of DIMSE on loopback; 0 where it is switched off.
    """

    port: int
    dicom_port: int = 0

    @property
    def url(self) -> str:
        """Root of its DICOMweb interface."""
        return f"http://{LOOPBACK}:{self.port}/dicom-web"

    def store(self, files: Iterable[Path]) -> None:
        """Store instances in one STOW request, and see to it that none was refused.

        Raises:
            requests.HTTPError: The request was refused.
            ValueError: Instances were refused.

        Source: DICOM PS3.18 10.5.
        """
        parts = [
            b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (_BOUNDARY.encode(), file.read_bytes())
            for file in files
        ]
        response = requests.post(
            f"{self.url}/studies",
            data=b"".join([*parts, b"--%s--\r\n" % _BOUNDARY.encode()]),
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}',
                "Accept": "application/dicom+json",
            },
            timeout=60.0,
        )
        response.raise_for_status()
        refused = response.json().get("00081198", {}).get("Value", [])  # Failed SOP Sequence
        if refused:
            raise ValueError(f"Orthanc refused {len(refused)} instances: {refused}")


@dataclass(frozen=True, kw_only=True)
class RunningPacs(Pacs):
    """A server that this process has started.

    Attributes:
        process: Of the server.
    """

    process: subprocess.Popen[bytes] = field(repr=False)


@contextmanager
def running_pacs(
    programs: OrthancPrograms, folder: Path, pacs: Pacs | None = None, changes: Mapping[str, object] | None = None
) -> Iterator[RunningPacs]:
    """Start a server on what `folder` holds, wait until it answers, and stop it at the end.

    Args:
        programs: Where it is.
        folder: For its storage, configuration and log.
        pacs: Its ports; without, one for HTTP is chosen.
        changes: Of its configuration.

    Raises:
        RuntimeError: It did not become ready; the message has the end of its log.
    """
    pacs = pacs or Pacs(free_port())
    configuration, log = folder / "orthanc.json", folder / "orthanc.log"
    wanted = {**_configuration(programs, folder / "storage", pacs), **(changes or {})}
    configuration.write_text(json.dumps(wanted), encoding="utf-8")
    with running([str(programs.orthanc), str(configuration)], programs.environment, log) as process:
        wait_until_ready(pacs, process, log)
        yield RunningPacs(pacs.port, pacs.dicom_port, process=process)


def wait_until_ready(pacs: Pacs, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a started server answers.

    Raises:
        RuntimeError: It did not become ready; the message has the end of its log.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _answers(f"{pacs.url}/studies"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Orthanc is not ready: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _configuration(programs: OrthancPrograms, storage: Path, pacs: Pacs) -> dict[str, object]:
    return {
        "Name": "test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [str(programs.dicomweb_plugin)],
        "HttpPort": pacs.port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": pacs.dicom_port > 0,
        "DicomPort": pacs.dicom_port,
        "HttpThreadsCount": 8,
        "SyncStorageArea": False,
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": True,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5.0).ok
    except requests.ConnectionError:
        return False
