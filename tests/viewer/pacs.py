"""Orthanc on loopback: a DICOM server that shares no code with ucseg."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.viewer.processes import LOOPBACK, free_port, running
from tests.viewer.programs import ViewerPrograms

READY_TIMEOUT_S = 60.0
_BOUNDARY = "ucseg-instances"


@dataclass(frozen=True)
class Pacs:
    """A server that is ready.

    Attributes:
        port: Of HTTP on loopback; DICOMweb lies under ``/dicom-web``.
    """

    port: int

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


@contextmanager
def running_pacs(programs: ViewerPrograms, folder: Path) -> Iterator[Pacs]:
    """Start an empty server below `folder`, wait until it answers, and stop it at the end.

    Raises:
        RuntimeError: It did not become ready; the message has the end of its log.
    """
    pacs = Pacs(free_port())
    configuration, log = folder / "orthanc.json", folder / "orthanc.log"
    configuration.write_text(json.dumps(_configuration(programs, folder / "storage", pacs.port)), encoding="utf-8")
    with running([str(programs.orthanc), str(configuration)], programs.environment, log) as process:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _answers(f"{pacs.url}/studies"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Orthanc is not ready: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield pacs


def _configuration(programs: ViewerPrograms, storage: Path, port: int) -> dict[str, object]:
    return {
        "Name": "viewer test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [str(programs.dicomweb_plugin)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
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
