"""Upstream's `.pth` files: bytes to the tensors of a whole trio, strictly, and the sizes that their shapes say.

Source: behaviour of taozh2017/UCSeg 7251be6.
"""

from __future__ import annotations

import math
import pickle
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ucseg_runtime.errors import ModelError
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.nets.config import SIDE_DIVISOR

_MOST_NAMES = 10
_LONGEST_NAME = 120
_PREFIX = "module."
_UPG = "generate_pseudo_simple."
_SIZES_OF_SUBNETS = frozenset({"in_channels", "num_classes", "unet_width", "vnet_width"})
_ATTENTION = "generate_pseudo_simple.cross_attn"
_HEAD = "generate_pseudo_simple.final_head"
_POSITIONS = f"{_ATTENTION}.pos_embed"
_HEAD_STAGES = range(1, 6)
_ENCODER_2D = "net_1.encoder."
_KERNELS = tuple(f"net_2.{layer}.weight" for layer in ("block_one.conv.0", "block_nine.conv.0", "out_conv"))

# A zip archive, or the number that files of torch before 1.6 start with.
_TORCH_FILE = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
_LONGEST_START = max(map(len, _TORCH_FILE))
# What torch's reader raises on damaged bytes, besides the error of pickle itself.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error),
)

_SAVE_STATE = "Save it again where it was made, with torch.save(model.state_dict(), FILE)."
_GIVE_WHOLE = "Give the state dict of UC-Seg's whole model: net_1, net_2 and generate_pseudo_simple of one training."


@dataclass(frozen=True, eq=False)
class UpstreamFile:
    """A state dict that holds a whole trio, or two subnets alone.

    Attributes:
        state: Every tensor under upstream's name, contiguous, each in its own memory: weights and statistics float32
            and finite, counters int64.
        sizes: Sizes of the networks. Tile shape and activation only stand in: the file alone does not say them.
        tokens: Tokens in one tile, N; 0 where there is no UPG.
    """

    state: dict[str, Tensor]
    sizes: TrioConfig
    tokens: int


def read_state_dict(path: Path, *, with_upg: bool = True) -> UpstreamFile:
    """Read a state dict without running anything in it.

    Args:
        path: What `torch.save(model.state_dict(), path)` wrote; the names may all begin with `module.`.
        with_upg: Whether the file holds a whole trio; else two subnets alone, and the sizes of a UPG only stand in.

    Raises:
        ModelError: Not such a file, or tensors are missing, unexpected, misshaped, of another type or not finite.
            Names are in the message, at most ten of a kind.
    """
    state = _tensors(_loaded(path))
    dim = _dimension(state)
    wanted = {size: names for size, names in _witnesses(dim).items() if with_upg or size in _SIZES_OF_SUBNETS}
    votes = {size: _votes(state, witnesses) for size, witnesses in wanted.items()}
    if not all(votes.values()):
        raise _misfit(_differences(state, _of_wanted(_expected_ranks(state, dim), with_upg)))
    agreed = {size: Counter(found).most_common(1)[0][0] for size, found in votes.items()}
    sizes, tokens = _trio(dim, agreed) if with_upg else _pair(dim, agreed), agreed.get("tokens", 0)
    expected = _of_wanted(_expected(sizes), with_upg)
    if with_upg:
        expected[_POSITIONS] = expected[_POSITIONS].new_empty((1, tokens, sizes.attention_width))
    if differences := _differences(state, expected):
        raise _misfit(differences)
    _require_values(state, expected)
    # Tensors of a file may share memory, which safetensors refuses to write.
    owned = {name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in expected}
    return UpstreamFile(owned, sizes, tokens)


def _loaded(path: Path) -> object:
    try:
        with path.open("rb") as file:
            if not file.read(_LONGEST_START).startswith(_TORCH_FILE):
                raise ModelError("the file is not one that torch.save writes.", hint=_SAVE_STATE)
            file.seek(0)
            with warnings.catch_warnings():
                # torch 2.13 warns of pickle protocols that it goes on to read, or to refuse.
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the file holds objects that are not tensors, or is damaged; it was not loaded, as that could run code.",
            hint=_SAVE_STATE,
        ) from error
    except _DAMAGED as error:
        raise ModelError(f"the state dict cannot be read ({type(error).__name__}).", hint=_SAVE_STATE) from error


def _tensors(loaded: object) -> dict[str, Tensor]:
    """The flat mapping itself, without the prefix that torch's parallel wrappers add."""
    if not isinstance(loaded, Mapping):
        raise ModelError(f"the file holds one {type(loaded).__name__}; expected names with tensors.", hint=_SAVE_STATE)
    if wrapped := [_printable(name) for name, value in loaded.items() if isinstance(value, Mapping)]:
        raise ModelError(
            f"the file wraps state dicts: {len(wrapped)} of its {len(loaded)} entries hold mappings "
            f"({_listed(wrapped)}).",
            hint="Save the whole model's state dict alone: torch.save(torch.load(FILE)[ENTRY], NEW_FILE).",
        )
    if others := [f"{_printable(name)}: {type(value).__name__}" for name, value in loaded.items() if not _plain(value)]:
        raise ModelError(
            f"{len(others)} values of the state dict are not plain tensors ({_listed(others)}).", hint=_SAVE_STATE
        )
    prefix = _PREFIX if all(str(name).startswith(_PREFIX) for name in loaded) else ""
    return {str(name).removeprefix(prefix): value for name, value in loaded.items()}


def _plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def _dimension(state: Mapping[str, Tensor]) -> int:
    kernels = [state[name] for name in _KERNELS if name in state]
    if dims := Counter(kernel.ndim - 2 for kernel in kernels if kernel.ndim in (4, 5)):
        return dims.most_common(1)[0][0]
    return 2 if any(name.startswith(_ENCODER_2D) for name in state) else 3


def _witnesses(dim: int) -> dict[str, list[tuple[str, int]]]:
    """Each size with the tensors that say it, by name and axis; several, so that a single wrong one is outvoted."""
    if dim == 2:
        block = f"{_ENCODER_2D}in_conv.conv_conv"
        conv_1, conv_2, last = f"{block}.0", f"{block}.4", "net_1.decoder.out_conv"
    else:
        conv_1, conv_2, last = "net_1.conv1.conv1.0", "net_1.conv1.conv2.0", "net_1.final"
    first, embedding = "net_2.block_one.conv.0", f"{_ATTENTION}.to_patch_embedding.1"
    back, perceptron = f"{_ATTENTION}.to_out.0", f"{_ATTENTION}.MLP.net"
    witnesses = {
        "in_channels": [(f"{first}.weight", 1), (f"{conv_1}.weight", 1)],
        "num_classes": [("net_2.out_conv.weight", 0), ("net_2.out_conv.bias", 0), (f"{last}.bias", 0)],
        "unet_width": [(f"{conv_1}.weight", 0), (f"{conv_1}.bias", 0), (f"{conv_2}.bias", 0)],
        "vnet_width": [(f"{first}.weight", 0), (f"{first}.bias", 0), ("net_2.block_nine.conv.0.bias", 0)],
        "token_length": [(f"{embedding}.weight", 1), (f"{back}.weight", 0), (f"{back}.bias", 0)],
        "tokens": [(_POSITIONS, 1)],
        "attention_width": [(_POSITIONS, 2), (f"{embedding}.weight", 0), (f"{embedding}.bias", 0)],
        "heads": [(f"{_ATTENTION}.attn.temperature", 0)],
        "all_heads": [(f"{_ATTENTION}.attn.w_{letter}.bias", 0) for letter in "qkv"],
        "mlp_hidden": [(f"{perceptron}.0.weight", 0), (f"{perceptron}.0.bias", 0), (f"{perceptron}.3.weight", 1)],
    }
    for stage in _HEAD_STAGES:
        witnesses[f"head_{stage}"] = [(f"{_HEAD}.conv{stage}.{name}", 0) for name in ("0.weight", "1.weight", "1.bias")]
    return witnesses


def _votes(state: Mapping[str, Tensor], witnesses: Sequence[tuple[str, int]]) -> list[int]:
    return [state[name].shape[axis] for name, axis in witnesses if name in state and axis < state[name].ndim]


def _trio(dim: int, agreed: Mapping[str, int]) -> TrioConfig:
    """The sizes of a file, with a tile shape that any trio of this token side can have."""
    token_side = round(agreed["token_length"] ** (1 / dim))
    try:
        return TrioConfig(
            dim=dim,
            in_channels=agreed["in_channels"],
            num_classes=agreed["num_classes"],
            tile_shape=(2 * math.lcm(SIDE_DIVISOR, token_side),) * dim,
            unet_width=agreed["unet_width"],
            vnet_width=agreed["vnet_width"],
            token_side=token_side,
            attention_width=agreed["attention_width"],
            heads=agreed["heads"],
            head_dim=agreed["all_heads"] // max(1, agreed["heads"]),
            mlp_hidden=agreed["mlp_hidden"],
            head_widths=tuple(agreed[f"head_{stage}"] for stage in _HEAD_STAGES),
        )
    except ValueError as error:
        raise ModelError(f"the state dict has sizes that no trio can have: {error}", hint=_GIVE_WHOLE) from error


def _pair(dim: int, agreed: Mapping[str, int]) -> TrioConfig:
    """The sizes of two subnets; those of the UPG are the smallest, as there is none."""
    try:
        return TrioConfig(
            dim=dim,
            in_channels=agreed["in_channels"],
            num_classes=agreed["num_classes"],
            unet_width=agreed["unet_width"],
            vnet_width=agreed["vnet_width"],
            tile_shape=(2 * SIDE_DIVISOR,) * dim,
            attention_width=1,
            heads=1,
            head_dim=1,
            mlp_hidden=1,
            head_widths=(1,) * len(_HEAD_STAGES),
        )
    except ValueError as error:
        raise ModelError(f"the state dict has sizes that no subnets can have: {error}", hint=_GIVE_WHOLE) from error


def _of_wanted(expected: dict[str, Tensor], with_upg: bool) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in expected.items() if with_upg or not name.startswith(_UPG)}


def _expected(config: TrioConfig) -> dict[str, Tensor]:
    """The state of a trio, without values."""
    with torch.device("meta"), _Unfilled():
        return DualNet(config).state_dict()


class _Unfilled(TorchFunctionMode):
    """Tensors are not filled: random values on the meta device would import torch's compiler, which takes seconds."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),  # Any: whatever the functions of torch take
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """What the function gives; nothing where it would fill a tensor."""
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return None  # initialisers work in place, and nothing reads what they return
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _expected_ranks(state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """A state of upstream's sizes; a tensor that has the right number of axes is taken as it is."""
    usual = _expected(TrioConfig.upstream_3d() if dim == 3 else TrioConfig.upstream_acdc())
    return {name: state[name] if name in state and state[name].ndim == t.ndim else t for name, t in usual.items()}


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Kind of difference to names; only kinds that occur."""
    kinds = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(_printable(name) for name in state.keys() - expected.keys()),
        "misshaped": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in sorted(state.keys() & expected.keys())
            if state[name].shape != expected[name].shape
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _misfit(differences: Mapping[str, Sequence[str]]) -> ModelError:
    kinds = (f"{len(names)} {kind} ({_listed(names)})" for kind, names in differences.items())
    return ModelError(f"the state dict does not fit UC-Seg's networks: {'; '.join(kinds)}.", hint=_GIVE_WHOLE)


def _require_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if others := [
        f"{name} {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if state[name].dtype != tensor.dtype
    ]:
        raise ModelError(
            f"{len(others)} tensors of the state dict are of another type ({_listed(others)}).",
            hint="Save model.float().state_dict() of a model that is not quantised.",
        )
    if wrong := [name for name in expected if not torch.isfinite(state[name]).all()]:
        raise ModelError(
            f"{len(wrong)} tensors of the state dict hold values that are not finite ({_listed(wrong)}).",
            hint="The training has diverged, or the file is damaged: give an earlier one.",
        )
    if wrong := [name for name in expected if name.endswith("running_var") and (state[name] < 0).any()]:
        raise ModelError(
            f"{len(wrong)} variances of the state dict are negative ({_listed(wrong)}).",
            hint="The file is damaged: give another one.",
        )


def _printable(name: object) -> str:
    """A name from a file as a piece of one line."""
    text = str(name)[:_LONGEST_NAME]
    return text if text.isprintable() else ascii(text)


def _listed(names: Sequence[str]) -> str:
    separator = "; " if any(", " in name for name in names) else ", "
    more = len(names) - _MOST_NAMES
    return separator.join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
