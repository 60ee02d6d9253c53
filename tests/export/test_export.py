"""Exported graphs compute what the trained networks compute, and nothing else gets into a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tests.training_phantom import TINY, tiny_model_spec
from ucseg_export import rewrites
from ucseg_export.cli import app
from ucseg_export.export_model import ExportRequest, export_model
from ucseg_export.rewrites import BlockedInstanceNorm, ScaledUpg, with_blocked_norms, without_dead_biases
from ucseg_export.to_onnx import onnx_graphs
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import AccuracyGateError, OutputError, UcsegError
from ucseg_runtime.model_folder import load_model
from ucseg_training.checkpoint import save_checkpoint
from ucseg_training.nets import DualNet, TrioConfig, UNet3d


def trained_like(config: TrioConfig = TINY) -> DualNet:
    """A trio whose norms hold statistics that are far from the identity."""
    torch.manual_seed(3)
    net = DualNet(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "trio.safetensors"
    save_checkpoint(path, trained_like().state_dict(), TINY, 7, tiny_model_spec())
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    export_model(ExportRequest(checkpoint, out))
    return out


def test_export_makes_a_model_folder_that_the_runtime_accepts(folder: Path) -> None:
    model = load_model(folder)

    assert set(model.manifest.artifacts) == set(GRAPHS)
    assert {row.graph for row in model.manifest.parity} == set(GRAPHS)
    assert all(row.max_abs_difference <= row.tolerance <= 1e-4 for row in model.manifest.parity)


@pytest.mark.parametrize("key", GRAPHS)
def test_graph_has_the_named_tensors_free_tiles_and_no_trace_of_the_machine(key: str, folder: Path) -> None:
    content = (folder / f"{key}.onnx").read_bytes()
    graph = onnx.load_from_string(content).graph

    assert [item.name for item in graph.input] == list(GRAPHS[key].inputs)
    assert [item.name for item in graph.output] == list(GRAPHS[key].outputs)
    assert all(item.type.tensor_type.shape.dim[0].dim_param for item in graph.input)
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content
    assert "Dropout" not in {node.op_type for node in graph.node}


def test_exporting_again_gives_the_same_bytes() -> None:
    assert onnx_graphs(trained_like()) == onnx_graphs(trained_like())


def test_wrongly_folded_norm_is_refused_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rewrites._folded

    def wrong(conv: nn.Conv3d, norm: nn.Module) -> nn.Conv3d:
        folded = right(conv, norm)
        nn.init.constant_(folded.bias, 0.0)
        return folded

    monkeypatch.setattr(rewrites, "_folded", wrong)

    with pytest.raises(AccuracyGateError, match="comparisons with torch failed"):
        export_model(ExportRequest(checkpoint, tmp_path / "model"))

    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_replaced_unless_asked(checkpoint: Path, folder: Path) -> None:
    with pytest.raises(UcsegError) as caught:
        export_model(ExportRequest(checkpoint, folder))

    assert isinstance(caught.value, OutputError)


def test_command_exports_and_prints_one_document(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["onnx", str(checkpoint), "--out", str(tmp_path / "model"), "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["largest_difference"] <= 1e-4


def test_scale_after_the_first_convolution_is_the_scale_before_it() -> None:
    upg = trained_like().upg
    logits_a, logits_b = torch.randn(2, 2, 3, 32, 32, 32).unbind(0)

    with torch.no_grad():
        torch.testing.assert_close(
            ScaledUpg(upg).eval()(logits_a, logits_b), upg(logits_a, logits_b), rtol=0, atol=1e-5
        )


def test_biases_before_an_instance_norm_have_no_effect() -> None:
    torch.manual_seed(0)
    net = UNet3d(1, 3, 2).eval()
    image = torch.randn(1, 1, 32, 32, 32)

    with torch.no_grad():
        difference = (without_dead_biases(net)(image).logits - net(image).logits).abs().max()

    assert difference < 1e-4
    assert sum(p.numel() for p in without_dead_biases(net).parameters()) < sum(p.numel() for p in net.parameters())


def test_blocked_norm_is_exact_where_a_channel_is_nearly_constant() -> None:
    torch.manual_seed(0)
    x = torch.full((1, 1, 32, 32, 32), 300.0)
    x[..., :2, :2, :2] += torch.randn(2, 2, 2)
    exact = nn.functional.instance_norm(x.double(), eps=1e-5)

    found = BlockedInstanceNorm(1e-5)(x)

    assert (found.double() - exact).abs().max() < 1e-2 * exact.abs().max()
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in with_blocked_norms(UNet3d(1, 3, 2)).modules())
