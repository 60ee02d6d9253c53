"""What a model must be like to be used on pictures and clips, and how many frames it is given at a time."""

from __future__ import annotations

from ucseg_runtime.errors import ManifestError
from ucseg_runtime.intensity import looks_at_volume
from ucseg_runtime.manifest import ModelSpec

_PIXELS_AT_A_TIME = 32_000_000
"""Each takes about 13 bytes: the colours of the frame, its labels and its uncertainty, and what resampling needs."""

_MOST_FRAMES_AT_A_TIME = 64


def require_picture_model(spec: ModelSpec) -> None:
    """Check that a model needs nothing that frames do not have: a spacing, directions of the patient, neighbours.

    Raises:
        ManifestError: It does.
    """
    preprocessing, tiling = spec.preprocessing, spec.tiling
    for wrong, found in (
        (preprocessing.plane_shape is None, "a spacing in mm and no plane_shape"),
        (preprocessing.orientation != "acquired", f"the orientation {preprocessing.orientation} (acquired)"),
        (tiling.tile_shape[0] != 1, f"tiles of {tiling.tile_shape[0]} slices (1)"),
        (spec.channels not in (1, 3), f"{spec.channels} channels (1 or 3)"),
        (bool(spec.postprocessing.smallest_component_ml), "a clean-up by volume in ml"),
    ):
        if wrong:
            raise ManifestError(
                f"the model is for pictures of modality {spec.modality}, and its manifest asks for "
                f"{found.replace('(', '(expected ')}; frames have no place in the patient.",
                hint="Export the model with a preprocessing for planes.",
            )


def frames_at_a_time(spec: ModelSpec, rows: int, columns: int) -> int:
    """How many frames are segmented together.

    One alone where the model looks at the whole of an image, for its intensities or its clean-up: each frame is an
    image of its own. Else as many as bound the memory, whatever the length of the clip.

    Args:
        spec: See `require_picture_model`.
        rows: Of a frame.
        columns: Of a frame.
    """
    if looks_at_volume(spec.preprocessing.intensity) or spec.postprocessing.largest_component:
        return 1
    return max(1, min(_MOST_FRAMES_AT_A_TIME, _PIXELS_AT_A_TIME // (rows * columns)))
