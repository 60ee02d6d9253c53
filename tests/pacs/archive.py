"""A running Orthanc, asked over its own interface, so that what ucseg says of it can be checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.orthanc import Pacs, RunningPacs, running_pacs
from tests.pacs.programs import PacsPrograms
from tests.processes import LOOPBACK, free_port

TITLE = "ORTHANC"


@dataclass(frozen=True)
class TestArchive:
    """Orthanc, with its ports."""

    __test__ = False

    pacs: RunningPacs
    programs: PacsPrograms = field(repr=False)

    @property
    def dimse(self) -> str:
        """Its address for DIMSE."""
        return f"{TITLE}@{LOOPBACK}:{self.pacs.dicom_port}"

    @property
    def web(self) -> str:
        """Its address for DICOMweb."""
        return f"dicomweb+{self.pacs.url}"

    def kill(self) -> None:
        """End it at once."""
        self.pacs.process.kill()
        self.pacs.process.wait()

    def get(self, path: str) -> Any:  # noqa: ANN401  whatever Orthanc says
        """An answer of its REST interface."""
        answer = requests.get(f"http://{LOOPBACK}:{self.pacs.port}{path}", timeout=20.0)
        answer.raise_for_status()
        return answer.json()

    def modalities(self, study_uid: str) -> Counter[str]:
        """How many instances of each modality it has of a study."""
        found: Counter[str] = Counter()
        for study in self._found("Study", {"StudyInstanceUID": study_uid}):
            for series in self.get(f"/studies/{study}/series"):
                found[series["MainDicomTags"]["Modality"]] += len(series["Instances"])
        return found

    def seg_types(self, study_uid: str) -> list[str]:
        """(0062,0001) of every segmentation of a study."""
        return [
            self.get(f"/instances/{instance}/simplified-tags")["SegmentationType"]
            for study in self._found("Study", {"StudyInstanceUID": study_uid})
            for series in self.get(f"/studies/{study}/series")
            if series["MainDicomTags"]["Modality"] == "SEG"
            for instance in series["Instances"]
        ]

    def results(self, study_uid: str) -> dict[str, Any]:
        """Tags and values of the instances of a study that are no CT, by modality and number."""
        return {
            f"{series['MainDicomTags']['Modality']} {number}": self.get(f"/instances/{instance}/simplified-tags")
            for study in self._found("Study", {"StudyInstanceUID": study_uid})
            for series in self.get(f"/studies/{study}/series")
            if series["MainDicomTags"]["Modality"] != "CT"
            for number, instance in enumerate(series["Instances"], start=1)
        }

    def instance_uids(self) -> list[str]:
        """Of everything that it has; one that it has twice is in the list twice."""
        return [item["MainDicomTags"]["SOPInstanceUID"] for item in self.get("/instances?expand")]

    def wait_for(self, study_uid: str, expected: Mapping[str, int], seconds: float = 60.0) -> None:
        """Wait until it has at least so many instances of some modalities of a study."""
        deadline = time.monotonic() + seconds
        while not Counter(expected) <= self.modalities(study_uid):
            assert time.monotonic() < deadline, f"it has {self.modalities(study_uid)}, expected {expected}"
            time.sleep(0.2)

    def _found(self, level: str, query: Mapping[str, str]) -> Any:  # noqa: ANN401  whatever Orthanc says
        answer = requests.post(
            f"http://{LOOPBACK}:{self.pacs.port}/tools/find", json={"Level": level, "Query": dict(query)}, timeout=20.0
        )
        answer.raise_for_status()
        return answer.json()


RESULTS = {"SEG": 1, "SR": 1, "OT": 1}
"""Modalities of what comes back; the one of a Parametric Map from CT is OT."""


@contextmanager
def running_archive(
    programs: PacsPrograms, folder: Path, pacs: Pacs | None = None, changes: Mapping[str, object] | None = None
) -> Iterator[TestArchive]:
    """Start Orthanc with a DICOM server on what the folder holds."""
    ports = pacs or Pacs(free_port(), free_port())
    settings = {
        "DicomAet": TITLE,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        **(changes or {}),
    }
    with running_pacs(programs, folder, ports, settings) as ready:
        yield TestArchive(ready, programs)
