"""Upstream checkpoints become checkpoints of this project, and the other way round.

The networks' state-dict names are upstream's, so no tensor is renamed, permuted or converted on either way.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from ucseg_runtime.backends.graphs import engine_tile_shape
from ucseg_runtime.errors import ManifestError, ModelError, OutputError
from ucseg_runtime.manifest import ModelSpec, Tiling
from ucseg_training.checkpoint import UPG_PREFIX, load_checkpoint, save_checkpoint
from ucseg_training.description import require_fit
from ucseg_training.nets import Activation, TrioConfig
from ucseg_training.upstream_file import UpstreamFile, read_state_dict

TOKEN_GRIDS: Mapping[int, tuple[int, int, int]] = MappingProxyType({216: (6, 6, 6), 245: (7, 7, 5), 320: (8, 8, 5)})
"""Tokens of a 3D tile to tokens along (x, y, z): the tile shapes that upstream's code names."""

_STEP_IN_NAME = re.compile(r"best_(?:model_)?(\d{1,12})", re.ASCII)
_GIVE_TILE = "Give the tile shape of the training in the networks' order of axes: --tile-shape X,Y,Z (Y,X in 2D)."
_DESCRIBE = "See the fields of ModelSpec in ucseg_runtime.manifest."


@dataclass(frozen=True, eq=False)
class UpstreamModel:
    """What `read_upstream` finds.

    Attributes:
        config: Sizes of the networks. The tile shape is in their order of axes: (x, y, z) in upstream's 3D models.
        state: Every tensor under upstream's name: weights and statistics float32 and finite, counters int64.
        assumed_grid: Whether the arrangement of the tokens is upstream's convention, neither given nor certain.
    """

    config: TrioConfig
    state: dict[str, Tensor]
    assumed_grid: bool


@dataclass(frozen=True)
class ImportReport:
    """What `import_upstream` has written.

    Attributes:
        config: Sizes of the networks.
        step: Training steps by the name of the file; 0 where it does not say.
        spec: The description in the checkpoint; None where none was given.
        notes: What the user should know; each a line.
    """

    config: TrioConfig
    step: int
    spec: ModelSpec | None
    notes: tuple[str, ...]


def read_upstream(
    path: Path, *, tile_shape: tuple[int, ...] | None = None, activation: Activation | None = None
) -> UpstreamModel:
    """Read an upstream state dict, strictly and without running anything in it.

    Args:
        path: What `torch.save(model.state_dict(), path)` wrote; the names may all begin with `module.`.
        tile_shape: Voxels of a tile in the networks' order of axes. Needed in 3D unless the number of tokens is in
            `TOKEN_GRIDS`; in 2D the file says it.
        activation: How logits become probabilities; when not given, sigmoid for two channels and softmax for more.

    Raises:
        ModelError: Not such a file; tensors are missing, unexpected, misshaped, of another type or not finite; or
            tile shape or activation contradict the file, or the tile shape is not known.
    """
    return _resolved(read_state_dict(path), tile_shape, activation)


def import_upstream(
    path: Path,
    out: Path,
    *,
    description: Path | None = None,
    tile_shape: tuple[int, ...] | None = None,
    activation: Activation | None = None,
    with_upg: bool = True,
) -> ImportReport:
    """Write an upstream state dict as a checkpoint of this project, with what the model is.

    The description is a JSON (`*.json`) or YAML file with the fields of `ModelSpec`. What the weights decide may be
    left out, and must agree where it is given: `dim`, `channels`, `activation`, `fusion`, `tiling.tile_shape`, which
    is (z, y, x), or (1, y, x) in 2D. These have a default: `default_precision` f32; `tiling.axis_order` xyz in 3D,
    upstream's order of axes; `postprocessing` the largest component in 3D with one class, as upstream does, else
    nothing; `provenance` empty. The digest of the state dict is added to the provenance.

    Args:
        path: As for `read_upstream`; a name like best_12000.pth or best_model_12000.pth says the training steps.
        out: Checkpoint to write (safetensors); appears complete or not at all.
        description: What the model is. Without it the checkpoint describes nothing, and a note says so.
        tile_shape: As for `read_upstream`; when not given, the description's.
        activation: As for `read_upstream`; when not given, the description's.
        with_upg: Whether the file holds a whole trio. Without a UPG it holds two subnets alone: the tile shape must be
            known, since no file says it then, and the checkpoint is for weight-free fusion rules.

    Raises:
        ModelError: As `read_upstream` raises it.
        ManifestError: The description cannot be read, breaks the schema, or describes other networks.
        OutputError: The checkpoint cannot be written.
    """
    fields = None if description is None else _fields(description)
    file = read_state_dict(path, with_upg=with_upg)
    if fields is not None:
        tile_shape = tile_shape or _stated_tile_shape(fields, file.sizes.dim)
        activation = activation or _stated_activation(fields)
    model = _resolved(file, tile_shape, activation)
    spec = None if fields is None else _model_spec(fields, model.config, _digest(path))
    named = _STEP_IN_NAME.fullmatch(path.stem)
    step = int(named[1]) if named else 0
    save_checkpoint(out, model.state, model.config, step, spec.model_dump(mode="json") if spec else {})
    return ImportReport(model.config, step, spec, tuple(_notes(model, spec, step_known=named is not None)))


def emit_upstream(checkpoint: Path, out: Path) -> tuple[str, ...]:
    """Write the tensors of a checkpoint as an upstream state dict: a flat mapping of upstream's names.

    Args:
        checkpoint: What `import_upstream` or a training run wrote.
        out: File to write (`.pth`); appears complete or not at all.

    Returns:
        What the user should know; each a line.

    Raises:
        ModelError: Not a checkpoint of this project.
        OutputError: The file cannot be written.
    """
    loaded = load_checkpoint(checkpoint)
    temporary = out.with_name(f".{out.name}.part")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(loaded.net.state_dict()), file)
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"the state dict cannot be written ({type(error).__name__}).",
            hint="Check that the folder exists, is writable and has space left.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    tiling = loaded.model_spec.get("tiling")
    if loaded.net.config.dim == 3 and isinstance(tiling, dict) and tiling.get("axis_order", "zyx") == "zyx":
        return ("These networks take volumes as (z, y, x); upstream's programs give them (x, y, z): turn them there.",)
    return ()


def _resolved(file: UpstreamFile, tile_shape: tuple[int, ...] | None, activation: Activation | None) -> UpstreamModel:
    """The file with what it does not say itself, if that fits."""
    sizes = file.sizes
    if activation is None:
        activation = "sigmoid" if sizes.num_classes == 2 else "softmax"
    if activation == "sigmoid" and sizes.num_classes != 2:
        raise ModelError(
            f"the networks have {sizes.num_classes} channels of logits; sigmoid needs 2, background and foreground.",
            hint="Import with --activation softmax.",
        )
    try:
        config = replace(sizes, tile_shape=_tile_shape(file, tile_shape), activation=activation)
    except ValueError as error:
        raise ModelError(f"the networks cannot be built so: {error}", hint=_GIVE_TILE) from error
    return UpstreamModel(config, file.state, assumed_grid=sizes.dim == 3 and tile_shape is None)


def _tile_shape(file: UpstreamFile, given: tuple[int, ...] | None) -> tuple[int, ...]:
    dim, side = file.sizes.dim, file.sizes.token_side
    if not file.tokens:
        if given is None:
            raise ModelError("without a UPG the file does not say the tile shape.", hint=_GIVE_TILE)
        return tuple(given)
    tokens = f"the file has {file.tokens} tokens of {' x '.join([str(side)] * dim)} voxels in a tile"
    grid: tuple[int, ...] | None = TOKEN_GRIDS.get(file.tokens)
    if dim == 2:
        root = math.isqrt(file.tokens)
        if root**2 != file.tokens:
            raise ModelError(f"{tokens}; 2D networks need a square number of them.")
        grid = (root, root)
    if given is None:
        if grid is None:
            raise ModelError(f"{tokens}; it does not say how they are arranged.", hint=_GIVE_TILE)
        return tuple(cells * side for cells in grid)
    fits = len(given) == dim and all(length > 0 and length % side == 0 for length in given)
    if not fits or math.prod(length // side for length in given) != file.tokens or (dim == 2 and given[0] != given[1]):
        raise ModelError(
            f"{tokens}; a tile of {' x '.join(map(str, given))} voxels does not fit that.", hint=_GIVE_TILE
        )
    return tuple(given)


def _fields(description: Path) -> dict[str, object]:
    """The top of a description as it stands in the file."""
    try:
        text = description.read_text(encoding="utf-8")
        fields = json.loads(text) if description.suffix.lower() == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"the model's description is not JSON: line {error.lineno}: {error.msg}.") from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f": line {mark.line + 1}" if mark else ""
        raise ManifestError(f"the model's description is not YAML{where}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"the model's description cannot be read ({type(error).__name__}).") from error
    if not isinstance(fields, dict):
        raise ManifestError(
            f"the model's description is one {type(fields).__name__}; expected names with values.", hint=_DESCRIBE
        )
    return {str(name): value for name, value in fields.items()}


def _stated_tile_shape(fields: Mapping[str, object], dim: int) -> tuple[int, ...] | None:
    """The tile shape of a description in the networks' order of axes."""
    stated = fields.get("tiling")
    if not isinstance(stated, dict) or "tile_shape" not in stated:
        return None
    try:
        shape = engine_tile_shape(Tiling.model_validate({"axis_order": _axis_order(dim), **stated}))
    except ValidationError as error:
        raise _broken(error, "tiling") from error
    return shape[3 - dim :]


def _stated_activation(fields: Mapping[str, object]) -> Activation | None:
    stated = fields.get("activation")
    return stated if stated in ("sigmoid", "softmax") else None


def _axis_order(dim: int) -> str:
    return "xyz" if dim == 3 else "zyx"


def _model_spec(fields: Mapping[str, object], config: TrioConfig, digest: str) -> ModelSpec:
    """A description with what it leaves out, checked against the networks."""
    filled: dict[str, object] = {
        "dim": config.dim,
        "channels": config.in_channels,
        "activation": config.activation,
        "fusion": "upg",
        "default_precision": "f32",
        "postprocessing": {"largest_component": [1]} if config.dim == 3 and config.num_classes == 2 else {},
        "provenance": {},
        "tiling": {},
        **fields,
    }
    tiling = filled["tiling"]
    if isinstance(tiling, dict):
        order = tiling.get("axis_order", _axis_order(config.dim))
        filled["tiling"] = {"axis_order": order, "tile_shape": _tile_zyx(config, order), **tiling}
    try:
        spec = ModelSpec.model_validate(filled)
    except ValidationError as error:
        raise _broken(error) from error
    require_fit(spec, config)
    provenance = {**spec.provenance, "imported_from": f"UC-Seg state dict, sha256 {digest}"}
    return spec.model_copy(update={"provenance": provenance})


def _tile_zyx(config: TrioConfig, axis_order: object) -> tuple[int, ...]:
    """The tile shape as a description has it."""
    shape = (1,) * (3 - config.dim) + config.tile_shape
    return shape[::-1] if axis_order == "xyz" else shape


def _broken(error: ValidationError, *inside: str) -> ManifestError:
    breaches = "; ".join(
        f"{'.'.join(map(str, (*inside, *item['loc']))) or 'whole'}: {item['msg']}" for item in error.errors()
    )
    return ManifestError(f"the model's description breaks the schema: {breaches}.", hint=_DESCRIBE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes(model: UpstreamModel, spec: ModelSpec | None, *, step_known: bool) -> Iterator[str]:
    config = model.config
    sides = " x ".join(map(str, config.tile_shape))
    if model.assumed_grid:
        yield (
            f"{config.token_count} tokens are taken for tiles of {sides} voxels, as upstream has them; if the training "
            "had others, import again with --tile-shape."
        )
    if not step_known:
        yield "The name of the file does not say the training steps; they are recorded as 0."
    if UPG_PREFIX not in {name[: len(UPG_PREFIX)] for name in model.state}:
        yield "The checkpoint holds no UPG: export it with ucseg-export fusion and a rule without weights."
    if spec is None:
        order = _axis_order(config.dim)
        yield (
            "The checkpoint does not say what the model is: import it again with --describe, or the export will ask "
            f"for --spec with every field, among them dim {config.dim}, channels {config.in_channels}, "
            f"{config.num_classes - 1} classes, activation {config.activation}, tiling.axis_order {order} and "
            f"tiling.tile_shape {list(_tile_zyx(config, order))}."
        )
