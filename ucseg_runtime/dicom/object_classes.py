"""Which DICOM objects are slices of volumes, and which are pictures and clips."""

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

FRAME_CLASSES: dict[str, frozenset[str]] = {
    "US": frozenset(
        {
            uid.UltrasoundImageStorage,
            uid.UltrasoundMultiFrameImageStorage,
            "1.2.840.10008.5.1.4.1.1.6",  # both before 1993, retired
            "1.2.840.10008.5.1.4.1.1.3",
        }
    ),
    "ES": frozenset({uid.VLEndoscopicImageStorage, uid.VideoEndoscopicImageStorage}),
    "XC": frozenset({uid.VLPhotographicImageStorage, uid.VideoPhotographicImageStorage}),
}
"""By modality: pictures and clips, each frame an image of its own."""

SECONDARY_CAPTURES = frozenset(
    {
        uid.SecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
"""Pictures of anything: for models of the modality OT or SC, or where the user names the series."""
