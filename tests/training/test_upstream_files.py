"""Files that hold no state dict of upstream, or could do harm, are refused in a line."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.upstream_files import BOX, PLANE, loaded, refusal, same, saved
from tests.upstream_state import upstream_state
from ucseg_runtime.errors import ModelError
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.upstream import import_upstream, read_upstream


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param({"state_dict": {"a": torch.zeros(1)}, "epoch": torch.tensor(3)}, "(state_dict)", id="wrapper"),
        pytest.param({"model": {}, "optimizer": {"state": {}}, "epoch": 3}, "(model, optimizer)", id="several"),
    ],
)
def test_wrapper_is_refused_with_the_way_out(tmp_path: Path, content: object, named: str) -> None:
    error = refusal(saved(tmp_path, content))
    assert "wraps" in error.message
    assert named in error.message
    assert "torch.save" in error.hint


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (3, "step: int"),
        ([torch.zeros(1)], "step: list"),
        (None, "step: NoneType"),
        ("text", "step: str"),
        (torch.eye(3).to_sparse(), "step: Tensor"),
        (torch.zeros(3, device="meta"), "step: Tensor"),
    ],
    ids=["number", "list", "none", "text", "sparse tensor", "tensor without values"],
)
def test_value_that_is_no_plain_tensor_is_refused(tmp_path: Path, value: object, named: str) -> None:
    error = refusal(saved(tmp_path, {**upstream_state(BOX), "step": value}))
    assert f"1 values of the state dict are not plain tensors ({named})" in error.message


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 7], ids=["tensor", "list", "number"])
def test_content_without_names_is_refused(tmp_path: Path, content: object) -> None:
    assert "expected names with tensors" in refusal(saved(tmp_path, content)).message


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [True, False], ids=["among tensors", "alone"])
def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, zipped: bool, inside: bool) -> None:
    ran, path = tmp_path / "ran", saved(tmp_path, {})
    payload = _Payload(ran)
    content = {**upstream_state(BOX), "net_1.final.bias": payload} if inside else payload
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    error = refusal(path)
    assert "could run code" in error.message
    assert "state_dict()" in error.hint
    assert not ran.exists()
    pickle.loads(pickle.dumps(payload))  # noqa: S301  (the test's own bytes: the payload must be a live one)
    assert ran.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"lr": np.float64(0.1)}], ids=["module", "numpy scalar"])
def test_objects_are_refused(tmp_path: Path, content: object) -> None:
    assert "objects that are not tensors" in refusal(saved(tmp_path, content)).message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello world", id="text"),
        pytest.param(pickle.dumps({"a": 1}), id="plain pickle"),
        pytest.param(b"\x80\x02]" + b"]" * 5000, id="deep pickle"),
        pytest.param(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", id="safetensors"),
    ],
)
def test_file_that_torch_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, {})
    path.write_bytes(content)
    assert "not one that torch.save writes" in refusal(path).message


def test_other_zip_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")
    assert "the state dict cannot be read" in refusal(path).message


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_file_that_cannot_be_opened_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "canary"
    if kind == "folder":
        path.mkdir()
    assert "the state dict cannot be read" in refusal(path).message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_files_are_refused_or_read_but_never_end_otherwise(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, {})
    torch.save(upstream_state(PLANE), path, _use_new_zipfile_serialization=zipped)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for attempt in range(30):
        damaged = bytearray(good)
        if attempt % 3 == 0:
            del damaged[int(generator.integers(len(good))) :]
        else:
            # The names and shapes stand in the first bytes; that is where damage matters.
            for at in generator.integers(min(len(good), 20_000), size=attempt):
                damaged[at] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_upstream(path)
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 15
    assert not any("canary" in refusal for refusal in refusals)


def test_files_of_older_versions_of_torch_are_read(tmp_path: Path) -> None:
    path, state = saved(tmp_path, {}), upstream_state(PLANE)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert same(read_upstream(path).state, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_other_pickle_protocol_is_refused_without_a_warning(
    tmp_path: Path, zipped: bool, recwarn: pytest.WarningsRecorder
) -> None:
    path = saved(tmp_path, {})
    torch.save(upstream_state(PLANE), path, _use_new_zipfile_serialization=zipped, pickle_protocol=4)
    refusal(path)
    assert not recwarn.list


def test_parameters_and_tensors_of_shared_memory_come_in_as_own_tensors(tmp_path: Path) -> None:
    state = upstream_state(PLANE)
    attention = "generate_pseudo_simple.cross_attn.attn"
    state[f"{attention}.w_k.weight"] = nn.Parameter(state[f"{attention}.w_q.weight"])
    state[f"{attention}.w_k.bias"] = torch.zeros(1).expand(10)
    path, out = saved(tmp_path, state), tmp_path / "out.safetensors"
    assert loaded(path)[f"{attention}.w_k.bias"].stride() == (0,), "the file keeps what the tensors share"
    import_upstream(path, out)
    assert same(dict(load_checkpoint(out).net.state_dict()), {name: value.detach() for name, value in state.items()})
