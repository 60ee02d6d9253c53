"""A trio in torch behind the runtime's backend contract, so that evaluation runs the deployed flow."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import BackendInfo, TileOutput, check_tiles
from ucseg_runtime.errors import BackendError
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.segmentation import EngineInfo
from ucseg_training.description import require_fit
from ucseg_training.nets import DualNet, TrioOutput, uncertainty

Decided = Literal["fused", "subnet_a", "subnet_b", "mean"]
DECIDED: tuple[Decided, ...] = ("fused", "subnet_a", "subnet_b", "mean")

_BATCH_ATOL = 1e-4
"""Torch chooses its kernels by the size of the batch, and those sum in another order."""


class TorchBackend:
    """Runs the networks themselves; keeps the runtime's `Backend` contract.

    Args:
        net: The trio; used in eval mode. One for planes sees tiles of one slice.
        spec: What the model fixes.
        decided: Whose probabilities are returned: the fused output, one subnet, or the plain mean of both subnets.
        autocast: Whether the networks run in bfloat16.

    Raises:
        ManifestError: Networks and description do not belong together.
    """

    def __init__(self, net: DualNet, spec: ModelSpec, decided: Decided = "fused", *, autocast: bool = False) -> None:
        require_fit(spec, net.config)
        self._net = net.eval()
        self._spec = spec
        self._decided = decided
        self._autocast = autocast
        precision = "bf16" if autocast else "f32"
        self._info = BackendInfo(EngineInfo("torch", torch.__version__, precision, "CPU"), _BATCH_ATOL)

    @property
    def info(self) -> BackendInfo:
        """What computes, and how exactly."""
        return self._info

    def infer(self, tiles: Float32Array, *, with_logits: bool = False) -> TileOutput:
        """Probabilities and uncertainty of the chosen output; see `Backend.infer`."""
        check_tiles(tiles, self._spec)
        output = self._run(self._to_network(torch.tensor(tiles)))
        logits_a, logits_b, fused = (
            self._from_network(logits.float()) for logits in (output.logits_a, output.logits_b, output.fused_logits)
        )
        chosen = {"fused": (fused,), "subnet_a": (logits_a,), "subnet_b": (logits_b,), "mean": (logits_a, logits_b)}
        parts = chosen[self._decided]
        return TileOutput(
            probabilities=_mean([self._probabilities(part) for part in parts]),
            uncertainty=_mean([uncertainty(part) for part in parts]),
            logits_a=logits_a.numpy() if with_logits else None,
            logits_b=logits_b.numpy() if with_logits else None,
            fused_logits=fused.numpy() if with_logits else None,
        )

    def _run(self, image: Tensor) -> TrioOutput:
        try:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                output: TrioOutput = self._net(image)
        except RuntimeError as error:
            raise BackendError(f"torch failed on a batch of {len(image)} tiles.") from error
        return output

    def _to_network(self, tiles: Tensor) -> Tensor:
        """Tiles (tiles, channels, z, y, x) with the axes that the networks have."""
        if self._spec.dim == 2:
            return tiles[:, :, 0]
        return tiles if self._spec.tiling.axis_order == "zyx" else tiles.permute(0, 1, 4, 3, 2)

    def _from_network(self, logits: Tensor) -> Tensor:
        """The way back, contiguous."""
        if self._spec.dim == 2:
            return logits[:, :, None]
        return (logits if self._spec.tiling.axis_order == "zyx" else logits.permute(0, 1, 4, 3, 2)).contiguous()

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self._spec.activation == "sigmoid":
            return torch.sigmoid(logits[:, 1:2])
        return torch.softmax(logits, dim=1)


def _mean(parts: list[Tensor]) -> Float32Array:
    mean: Float32Array = torch.stack(parts).mean(dim=0).numpy()
    return mean
