"""Which DICOM objects are slices of volumes."""

from __future__ import annotations

from pydicom import uid

SLICE_CLASSES: dict[str, str] = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "PT": uid.PositronEmissionTomographyImageStorage,
}
"""By modality: the class with one slice in each file."""

MULTI_FRAME_CLASSES = frozenset(
    {
        uid.EnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.EnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
    }
)
"""With a slice in each frame, whose place stands in its functional groups."""
