"""Whether a model's description and its networks belong together."""

from __future__ import annotations

from ucseg_runtime.backends.graphs import engine_tile_shape
from ucseg_runtime.errors import ManifestError
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.nets import TrioConfig


def require_fit(spec: ModelSpec, config: TrioConfig) -> None:
    """Check a description against networks.

    Raises:
        ManifestError: It describes other networks; every difference is named.
    """
    pairs = {
        "dim": (spec.dim, config.dim),
        "channels": (spec.channels, config.in_channels),
        "classes with background": (spec.num_classes, config.num_classes),
        "activation": (spec.activation, config.activation),
        "fusion": (spec.fusion, "upg"),  # other rules are chosen when a model folder is made
        "tile shape in the networks' order of axes": (
            engine_tile_shape(spec.tiling),
            (1,) * (3 - config.dim) + config.tile_shape,
        ),
    }
    if differences := [f"{name} {said}, networks {built}" for name, (said, built) in pairs.items() if said != built]:
        raise ManifestError(
            f"the model's description does not fit the networks: {'; '.join(differences)}.",
            hint="Correct it, or leave out what the weights decide.",
        )
