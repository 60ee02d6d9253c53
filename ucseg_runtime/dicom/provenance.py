"""Whether a DICOM object is one that a certain run wrote from certain images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydicom.errors import InvalidDicomError

from ucseg_runtime.config import SegType
from ucseg_runtime.dicom.derived_object import read_header
from ucseg_runtime.dicom.equipment import equipment
from ucseg_runtime.dicom.uids import UidSource
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.segmentation import EngineInfo

_KINDS = (
    *(f"segmentation {seg_type}" for seg_type in get_args(SegType)),
    *("uncertainty", "uncertainty segmentation", "report", "structures", "preview"),
)


def identity_of(recorded: Mapping[str, object]) -> RunIdentity:
    """The identity of a run as a record holds it.

    Raises:
        TypeError: Another set of fields.
        KeyError: No engine.
    """
    engine = recorded["engine"]
    if not isinstance(engine, Mapping):
        raise TypeError("the engine of the record is no object")
    return RunIdentity(**{**recorded, "engine": EngineInfo(**engine)})  # type: ignore[arg-type]


def objection(path: Path, identity: RunIdentity, sources: Sequence[str]) -> str:
    """Why an object is not what the run wrote, as a sentence without a full stop; empty if it is.

    The object has to name model, engine and version, and its UID has to be the one that follows from the source images,
    the model, the engine, the settings and the secret of the site: nobody without the secret can make that up.

    Args:
        path: DICOM object.
        identity: What the record says that the run was.
        sources: What the record says that the source images were.
    """
    try:
        header = read_header(path)
    except (OSError, InvalidDicomError):
        return "it cannot be read as DICOM"
    named = equipment(identity)
    software = header.get("SoftwareVersions") or ()
    found = (header.get("DeviceSerialNumber"), *([software] if isinstance(software, str) else software))
    if found != (named.serial_number, *named.software_versions):
        return "it names another model, engine or version than the record"
    uids = UidSource(tuple(sources), identity)
    if header.get("SOPInstanceUID") not in {uids.of_output(f"{kind} instance") for kind in _KINDS}:
        return "its UID does not follow from the images, the model, the settings and the secret of this site"
    return ""
