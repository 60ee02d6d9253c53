"""The torch backend keeps the contract of every backend of the runtime, for each output that it can be asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.training_phantom import TINY, tiny_model_spec, tiny_spec
from ucseg_runtime.errors import BackendError, ModelError, TileShapeError
from ucseg_runtime.evidence import evidence_from_logits, probabilities_from_logits
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.nets import DualNet
from ucseg_training.torch_backend import DECIDED, Decided, TorchBackend

ATOL = 1e-6
EACH_DECIDED = pytest.mark.parametrize("decided", DECIDED)


@pytest.fixture(scope="module")
def net() -> DualNet:
    torch.manual_seed(0)
    return DualNet(TINY)


@pytest.fixture
def backend(net: DualNet) -> TorchBackend:
    return TorchBackend(net, tiny_spec())


@pytest.fixture(scope="module")
def tiles() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (3, 1, *TINY.tile_shape)).astype(np.float32)


def _logits(net: DualNet, tiles: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    with torch.no_grad():
        output = net.eval()(torch.tensor(tiles))
    named = {"fused": output.fused_logits, "subnet_a": output.logits_a, "subnet_b": output.logits_b}
    return {name: tensor.numpy() for name, tensor in named.items()}


@pytest.mark.parametrize("decided", ["fused", "subnet_a", "subnet_b"])
def test_one_output_decides(net: DualNet, tiles: npt.NDArray[np.float32], decided: Decided) -> None:
    output = TorchBackend(net, tiny_spec(), decided).infer(tiles)
    logits = _logits(net, tiles)[decided]
    np.testing.assert_allclose(output.probabilities, probabilities_from_logits(logits, "softmax"), atol=ATOL)
    np.testing.assert_allclose(output.uncertainty, evidence_from_logits(logits).uncertainty, atol=ATOL)


def test_mean_is_that_of_both_subnets(net: DualNet, tiles: npt.NDArray[np.float32]) -> None:
    output = TorchBackend(net, tiny_spec(), "mean").infer(tiles)
    logits = [_logits(net, tiles)[name] for name in ("subnet_a", "subnet_b")]
    expected = np.mean([probabilities_from_logits(item, "softmax") for item in logits], axis=0)
    np.testing.assert_allclose(output.probabilities, expected, atol=ATOL)
    expected = np.mean([evidence_from_logits(item).uncertainty for item in logits], axis=0)
    np.testing.assert_allclose(output.uncertainty, expected, atol=ATOL)


@EACH_DECIDED
@pytest.mark.parametrize("autocast", [False, True], ids=["f32", "bf16"])
def test_results_are_probabilities_and_uncertainties(
    net: DualNet, tiles: npt.NDArray[np.float32], decided: Decided, autocast: bool
) -> None:
    output = TorchBackend(net, tiny_spec(), decided, autocast=autocast).infer(tiles[:1])
    assert output.probabilities.shape == (1, 3, *TINY.tile_shape)
    assert output.uncertainty.shape == (1, 1, *TINY.tile_shape)
    assert output.probabilities.dtype == output.uncertainty.dtype == np.float32
    assert output.probabilities.min() >= 0.0
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert output.uncertainty.min() > 0.0
    assert output.uncertainty.max() <= 1.0


def test_sigmoid_model_gives_the_foreground_alone(tiles: npt.NDArray[np.float32]) -> None:
    torch.manual_seed(0)
    net = DualNet(replace(TINY, num_classes=2, activation="sigmoid"))
    output = TorchBackend(net, tiny_spec(foreground=1, activation="sigmoid")).infer(tiles[:1])
    expected = probabilities_from_logits(_logits(net, tiles[:1])["fused"], "sigmoid")
    assert output.probabilities.shape == (1, 1, *TINY.tile_shape)
    np.testing.assert_allclose(output.probabilities, expected, atol=ATOL)


def test_order_of_the_tiles_is_kept_and_splitting_a_batch_changes_nothing_beyond_the_promise(
    net: DualNet, tiles: npt.NDArray[np.float32]
) -> None:
    backend = TorchBackend(net, tiny_spec(), "subnet_a")  # fresh fused outputs hardly depend on the tile
    whole = backend.infer(tiles)
    parts = [backend.infer(tiles[index : index + 1]) for index in range(len(tiles))]
    for name in ("probabilities", "uncertainty"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=0, atol=backend.info.batch_atol)
        assert np.abs(joined[0] - joined[1]).max() > 10 * backend.info.batch_atol, "the tiles must differ"


@EACH_DECIDED
def test_results_belong_to_the_caller(net: DualNet, tiles: npt.NDArray[np.float32], decided: Decided) -> None:
    backend = TorchBackend(net, tiny_spec(), decided)
    first = backend.infer(tiles[:1])
    copy = first.probabilities.copy()
    backend.infer(-tiles[:1])
    np.testing.assert_array_equal(first.probabilities, copy)
    first.probabilities[...] = 0.0
    np.testing.assert_array_equal(backend.infer(tiles[:1]).probabilities, copy)


def test_read_only_tiles_are_accepted_and_no_tile_is_changed(
    backend: TorchBackend, tiles: npt.NDArray[np.float32]
) -> None:
    writable = tiles[:1].copy()
    expected = backend.infer(writable).probabilities
    np.testing.assert_array_equal(writable, tiles[:1])
    writable.setflags(write=False)
    np.testing.assert_array_equal(backend.infer(writable).probabilities, expected)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda t: t.astype(np.float64), id="float64"),
        pytest.param(lambda t: t[..., ::-1], id="reversed view"),
        pytest.param(lambda t: t[..., :-1].copy(), id="too small"),
        pytest.param(lambda t: t[:, 0], id="no channel axis"),
        pytest.param(lambda t: np.concatenate([t, t], axis=1), id="two channels"),
        pytest.param(lambda t: t[:0], id="no tiles"),
    ],
)
def test_other_shapes_types_and_layouts_are_refused_and_the_backend_stays_usable(
    backend: TorchBackend, tiles: npt.NDArray[np.float32], build: object
) -> None:
    assert callable(build)
    with pytest.raises(TileShapeError, match=r"expected float32, C-contiguous, of shape \(tiles, 1, 32, 32, 32\)"):
        backend.infer(build(tiles))
    assert backend.infer(tiles[:1]).probabilities.shape == (1, 3, *TINY.tile_shape)


@EACH_DECIDED
def test_logits_of_all_three_come_on_request_and_never_otherwise(
    net: DualNet, tiles: npt.NDArray[np.float32], decided: Decided
) -> None:
    backend = TorchBackend(net, tiny_spec(), decided)
    without = backend.infer(tiles[:1])
    assert without.logits_a is without.logits_b is without.fused_logits is None
    output, expected = backend.infer(tiles[:1], with_logits=True), _logits(net, tiles[:1])
    for found, name in ((output.logits_a, "subnet_a"), (output.logits_b, "subnet_b"), (output.fused_logits, "fused")):
        assert found is not None
        np.testing.assert_allclose(found, expected[name], atol=1e-5)


def test_networks_are_in_eval_mode_whatever_they_were_in(tiles: npt.NDArray[np.float32]) -> None:
    torch.manual_seed(0)
    backend = TorchBackend(DualNet(TINY).train(), tiny_spec())
    first = backend.infer(tiles[:1]).probabilities
    np.testing.assert_array_equal(backend.infer(tiles[:1]).probabilities, first)


@pytest.mark.parametrize(("autocast", "precision"), [(False, "f32"), (True, "bf16")])
def test_info_says_what_computes(net: DualNet, autocast: bool, precision: str) -> None:
    engine = TorchBackend(net, tiny_spec(), autocast=autocast).info.engine
    assert (engine.name, engine.version, engine.precision) == ("torch", torch.__version__, precision)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_classes": 4}, id="classes"),
        pytest.param({"in_channels": 2}, id="channels"),
        pytest.param({"tile_shape": (32, 32, 48)}, id="tile shape"),
        pytest.param({"dim": 2, "tile_shape": (32, 32)}, id="dimensions"),
    ],
)
def test_networks_that_do_not_fit_the_description_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="does not fit the networks"):
        TorchBackend(DualNet(replace(TINY, **changes)), tiny_spec())


def _spec_with(tile_shape: tuple[int, int, int], axis_order: str = "zyx", dim: int = 3) -> ModelSpec:
    tiling = {"tile_shape": tile_shape, "axis_order": axis_order}
    return ModelSpec.model_validate({**tiny_model_spec(), "tiling": tiling, "dim": dim})


def test_networks_of_the_other_axis_order_see_turned_tiles() -> None:
    torch.manual_seed(0)
    turned_net = DualNet(replace(TINY, tile_shape=(16, 32, 48)))
    tiles = np.random.default_rng(0).random((1, 1, 48, 32, 16), dtype=np.float32)
    output = TorchBackend(turned_net, _spec_with((48, 32, 16), "xyz")).infer(tiles)
    with torch.no_grad():
        expected = turned_net.eval()(torch.from_numpy(tiles).permute(0, 1, 4, 3, 2)).fused_logits.softmax(dim=1)
    assert output.probabilities.shape == (1, 3, 48, 32, 16)
    np.testing.assert_allclose(output.probabilities, expected.permute(0, 1, 4, 3, 2).numpy(), atol=1e-5)
    with pytest.raises(ModelError, match="tile shape"):
        TorchBackend(turned_net, _spec_with((48, 32, 16), "zyx"))


def test_networks_for_planes_see_tiles_of_one_slice() -> None:
    torch.manual_seed(0)
    flat_net = DualNet(replace(TINY, dim=2, tile_shape=(32, 32)))
    tiles = np.random.default_rng(0).random((2, 1, 1, 32, 32), dtype=np.float32)
    output = TorchBackend(flat_net, _spec_with((1, 32, 32), dim=2)).infer(tiles)
    with torch.no_grad():
        expected = flat_net.eval()(torch.from_numpy(tiles[:, :, 0])).fused_logits.softmax(dim=1)
    assert output.uncertainty.shape == (2, 1, 1, 32, 32)
    np.testing.assert_allclose(output.probabilities[:, :, 0], expected.numpy(), atol=1e-5)


def test_failure_of_torch_is_a_backend_error_with_its_cause(tiles: npt.NDArray[np.float32]) -> None:
    class Failing(DualNet):
        def forward(self, image: torch.Tensor) -> None:
            raise RuntimeError(f"no memory for {len(image)}")

    with pytest.raises(BackendError, match="batch of 3 tiles") as caught:
        TorchBackend(Failing(TINY), tiny_spec()).infer(tiles)
    assert isinstance(caught.value.__cause__, RuntimeError)
