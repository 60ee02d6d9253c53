"""Where bfloat16 pays and where it can be trusted."""

from __future__ import annotations

import torch

from ucseg_training.errors import TrainingError
from ucseg_training.nets import TrioConfig

_LEVELS = 5
_UNSOUND_DEPTH = 2


def computes_in_bfloat16() -> bool:
    """True where bfloat16 autocast pays on this processor.

    Without the instructions torch emulates them: a training step of the demo model then takes 40 s instead of 5 s.
    """
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def require_sound_bfloat16(trio: TrioConfig) -> None:
    """Refuse networks whose gradients torch gets wrong in bfloat16 on a CPU.

    In torch 2.13 the gradient of the weights of a 3D convolution reads memory that nothing has written where the first
    spatial side is 2 voxels (sides 1, 3 and 4 were tried and are right, and so are 2 voxels along the other axes).

    Raises:
        TrainingError: A level of the networks is 2 voxels deep.
    """
    depths = {trio.tile_shape[0] // 2**level for level in range(_LEVELS)}
    if trio.dim == 3 and _UNSOUND_DEPTH in depths:  # noqa: PLR2004  (volumes)
        raise TrainingError(
            f"a tile {trio.tile_shape[0]} voxels deep cannot be trained in bfloat16 on a CPU: torch's gradients of 3D "
            "convolutions over 2 slices are wrong.",
            hint="Take --precision f32, or tiles of 48 voxels or more.",
        )
