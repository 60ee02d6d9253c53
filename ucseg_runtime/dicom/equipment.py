"""How an output names what made it: equipment, algorithm, contributing scanner."""

from __future__ import annotations

from dataclasses import dataclass

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from ucseg_runtime.dicom.codes import ACQUISITION_EQUIPMENT, ARTIFICIAL_INTELLIGENCE, long_string
from ucseg_runtime.identity import RunIdentity

MANUFACTURER = "ucseg"

_SCANNER_KEYWORDS = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "InstitutionalDepartmentName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)


@dataclass(frozen=True)
class Equipment:
    """The Enhanced General Equipment of every output.

    Attributes:
        manufacturer: (0008,0070).
        model_name: (0008,1090), name and version of the model.
        software_versions: (0018,1020), this package and the engine.
        serial_number: (0018,1000), SHA-256 of the manifest: it tells one trained model from another.
    """

    manufacturer: str
    model_name: str
    software_versions: tuple[str, ...]
    serial_number: str


def equipment(identity: RunIdentity) -> Equipment:
    """The model as a device."""
    return Equipment(
        manufacturer=MANUFACTURER,
        model_name=long_string(f"{identity.model_name} {identity.model_version}"),
        software_versions=(long_string(f"ucseg {identity.ucseg_version}"), long_string(identity.engine_text)),
        serial_number=long_string(identity.model_digest),
    )


def algorithm_parameters(identity: RunIdentity) -> dict[str, str]:
    """What tells two runs of one model apart, name to value."""
    return {
        "model_sha256": identity.model_digest,
        "settings_sha256": identity.settings_digest,
        "engine": identity.engine_text,
        "ucseg": identity.ucseg_version,
    }


def algorithm_identification(identity: RunIdentity) -> AlgorithmIdentificationSequence:
    """The model as the algorithm of a segment, with the digests as its parameters."""
    return AlgorithmIdentificationSequence(
        name=long_string(identity.model_name),
        family=CodedConcept.from_code(ARTIFICIAL_INTELLIGENCE),
        version=long_string(identity.model_version),
        source=MANUFACTURER,
        parameters=algorithm_parameters(identity),
    )


def scanner(header: Dataset) -> list[Dataset]:
    """The scanner as contributing equipment; empty where the images do not name its manufacturer.

    Source: DICOM PS3.3 C.12.1, Contributing Equipment Sequence (0018,A001), whose Manufacturer is type 1.
    """
    if not header.get("Manufacturer"):
        return []
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(ACQUISITION_EQUIPMENT)]
    for keyword in _SCANNER_KEYWORDS:
        if header.get(keyword):
            item.add(header[keyword])
    return [item]
