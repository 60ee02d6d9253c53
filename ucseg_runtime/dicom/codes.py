"""Coded concepts: those of the manifest, those of the standard, and the one that no public scheme has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code as DicomCode

from ucseg_runtime.decision import Outcome
from ucseg_runtime.fusion_names import FusionRule
from ucseg_runtime.manifest import Code, SegmentClass

PRIVATE_SCHEME = "99UCSEG"

EVIDENTIAL_UNCERTAINTY = DicomCode("uncertainty", PRIVATE_SCHEME, "Evidential uncertainty")
"""K / Σ(evidence + 1) in (0, 1]. Private: the quantities of DICOM CID 7180 and the measurements of CID 7469 know ADC,
saliency, entropy and others, but no uncertainty of a classifier."""

_ENTROPY_OF_MEAN = DicomCode("entropy-of-mean", PRIVATE_SCHEME, "Entropy of the mean of two networks")
_UNCERTAINTY_OF_RULE: Mapping[FusionRule, DicomCode] = {
    "upg": EVIDENTIAL_UNCERTAINTY,
    "mean": EVIDENTIAL_UNCERTAINTY,
    "dempster": EVIDENTIAL_UNCERTAINTY,
    "entropy": _ENTROPY_OF_MEAN,
    "coranet": DicomCode("disagreement", PRIVATE_SCHEME, "Disagreement of two networks at two thresholds"),
    "dual": DicomCode("divergence", PRIVATE_SCHEME, "Divergence of two networks"),
    "burl": _ENTROPY_OF_MEAN,
}

BETWEEN_SUBNET_DICE = DicomCode("subnet-dice", PRIVATE_SCHEME, "Dice coefficient between subnets")
"""Private: public schemes know the Dice coefficient of a segmentation and a reference, not of two networks."""

DECISION = DicomCode("decision", PRIVATE_SCHEME, "Decision on the result")
DECISIONS: Mapping[Outcome, DicomCode] = MappingProxyType(
    {
        "accept": DicomCode("accept", PRIVATE_SCHEME, "Accept"),
        "review": DicomCode("review", PRIVATE_SCHEME, "Review before use"),
        "reject": DicomCode("reject", PRIVATE_SCHEME, "Reject"),
    }
)
DECISION_BASIS = DicomCode("decision-basis", PRIVATE_SCHEME, "Basis of the decision")
DECISION_REASON = DicomCode("decision-reason", PRIVATE_SCHEME, "Reason of the decision")
"""Private: public schemes know categories of quality of images and of findings, not of a machine's result."""

QUALITATIVE_EVALUATIONS = DicomCode("C0034375", "UMLS", "Qualitative Evaluations")
VOLUME = DicomCode("118565006", "SCT", "Volume")
MAXIMUM_3D_DIAMETER = DicomCode("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
PERCENTILE_95 = DicomCode("371889001", "SCT", "95th Percentile Value of population")
MEAN = DicomCode("373098007", "SCT", "Mean")
UPWARD_UNCERTAINTY = DicomCode("371886008", "SCT", "+, range of upper measurement uncertainty")
DOWNWARD_UNCERTAINTY = DicomCode("371885007", "SCT", "-, range of lower measurement uncertainty")
PRESENCE = DicomCode("121052", "DCM", "Presence of property")
PRESENT = DicomCode("52101004", "SCT", "Present")
ABSENT = DicomCode("272519000", "SCT", "Absent")
MILLILITRE = DicomCode("ml", "UCUM", "milliliter")
MILLIMETRE = DicomCode("mm", "UCUM", "millimeter")
NO_UNITS = DicomCode("1", "UCUM", "no units")
ARTIFICIAL_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")
SPATIAL_CONCEPT = DicomCode("309825002", "SCT", "Spatial and Relational Concept")
"""Category of a segment that is no tissue. Source: DICOM CID 7150."""
DEVICE = DicomCode("121007", "DCM", "Device")
ACQUISITION_EQUIPMENT = DicomCode("109101", "DCM", "Acquisition Equipment")

LATERALITIES = frozenset({"7771000", "24028007", "51440002", "66459002"})
"""SNOMED CT: left, right, right and left, unilateral. Source: DICOM CID 244."""

_IMAGING_PROCEDURE = DicomCode("363679005", "SCT", "Imaging procedure")
_LONGEST_LO = 64


def uncertainty_of_rule(fusion: FusionRule) -> DicomCode:
    """What the uncertainty of a model with this fusion rule is; its meaning has at most 64 characters."""
    return _UNCERTAINTY_OF_RULE[fusion]


def concept(code: Code) -> CodedConcept:
    """A code of the manifest as DICOM writes it."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def laterality(item: SegmentClass) -> CodedConcept | None:
    """The side of a class whose modifier is one; None for all others."""
    modifier = item.modifier
    if modifier is None or modifier.scheme != "SCT" or modifier.value not in LATERALITIES:
        return None
    return concept(modifier)


def procedure_reported(modality: str) -> DicomCode:
    """The procedure that a report on images of this modality names; body region unspecified.

    Source: DICOM CID 100.
    """
    procedures = {
        "CT": DicomCode("25045-6", "LN", "CT unspecified body region"),
        "MR": DicomCode("25056-3", "LN", "MRI unspecified body region"),
        "PT": DicomCode("44136-0", "LN", "PET unspecified body region"),
    }
    return procedures.get(modality, _IMAGING_PROCEDURE)


def private_scheme() -> CodingSchemeIdentificationItem:
    """What ``99UCSEG`` is, for objects that use it."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME,
        name="ucseg private codes",
        responsible_organization="ucseg",
    )


def long_string(text: str) -> str:
    """Text as the value representation LO can hold it in every character set: ASCII, one line, 64 characters."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    return " ".join(plain.split())[:_LONGEST_LO]
