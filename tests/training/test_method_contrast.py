"""Contrastive terms against computations that go one cell and one class at a time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from ucseg_training.method.contrast import Prototypes, deepest, masks_of_size, patch_term, prototype_term, prototypes
from ucseg_training.method.queues import PrototypeQueue
from ucseg_training.nets import UNet2d, UNet3d, VNet

TEMPERATURE = 0.3
COMPAT = pytest.mark.parametrize("compat", [True, False], ids=["compat", "fixed"])
Float64 = npt.NDArray[np.float64]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unit(vector: Float64) -> Float64:
    return np.asarray(vector / np.linalg.norm(vector))


def _info_nce(positive: float, negatives: list[float]) -> float:
    """−ln of the softmax of the positive among all."""
    scores = np.array([positive, *negatives]) / TEMPERATURE
    return float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[0])


def _reference_patch_term(a: Float64, b: Float64, compat: bool) -> float:
    """`a` and `b`: (tiles, cells, channels)."""
    if not compat:
        a, b = (np.array([[_unit(cell) for cell in tile] for tile in side]) for side in (a, b))
    tiles, cells = range(len(a)), range(a.shape[1])
    losses = [
        _info_nce(a[t, j] @ b[t, j], [a[t, j] @ b[other, m] for other in tiles for m in cells if m != j])
        for t in tiles
        for j in cells
    ]
    return float(np.mean(losses))


@COMPAT
@pytest.mark.parametrize("dim", [2, 3])
def test_patch_term_picks_the_same_cell_among_all_other_places(dim: int, compat: bool) -> None:
    a, b = (_random(2, 4, *[6] * dim, seed=seed) for seed in (0, 1))
    # Cells of 2 x 2 (x 2) voxels, row by row.
    cells = [
        side.numpy().reshape(2, 4, *[3, 2] * dim).mean(axis=tuple(range(3, 3 + 2 * dim, 2))).reshape(2, 4, -1)
        for side in (a, b)
    ]
    expected = _reference_patch_term(*(side.transpose(0, 2, 1) for side in cells), compat)
    assert float(patch_term(a, b, TEMPERATURE, compat)) == pytest.approx(expected, rel=1e-9)


@COMPAT
def test_patch_term_of_equal_cells_is_the_logarithm_of_their_number(compat: bool) -> None:
    """One positive and 8 x 2 negatives, all alike."""
    ones = torch.ones(2, 4, 6, 6)
    assert float(patch_term(ones, ones, TEMPERATURE, compat)) == pytest.approx(math.log(17), rel=1e-5)


def test_patch_term_scales_with_activations_in_compat_alone() -> None:
    a, b = _random(2, 4, 6, 6), _random(2, 4, 6, 6, seed=1)
    fixed = [float(patch_term(factor * a, b, TEMPERATURE, compat=False)) for factor in (1.0, 10.0)]
    compat = [float(patch_term(factor * a, b, TEMPERATURE, compat=True)) for factor in (1.0, 10.0)]
    assert fixed[0] == pytest.approx(fixed[1], rel=1e-9)
    assert compat[0] != pytest.approx(compat[1], rel=0.1)


@COMPAT
def test_patch_term_has_a_finite_gradient_to_both_subnets_even_where_features_vanish(compat: bool) -> None:
    a, b = _random(2, 4, 6, 6), _random(2, 4, 6, 6, seed=1)
    a[:, :, :2], b[1] = 0.0, 0.0
    a.requires_grad_()
    b.requires_grad_()
    patch_term(a, b, TEMPERATURE, compat).backward()
    for side in (a, b):
        assert side.grad is not None
        assert side.grad.isfinite().all()
        assert (side.grad != 0).any()


def test_deepest_features_are_those_of_the_last_three_encoder_stages() -> None:
    for net, sides in ((UNet3d(1, 2, 2), (32, 16, 16)), (VNet(3, 1, 2, 2), (32, 16, 16)), (UNet2d(3, 2, 2), (32, 32))):
        image = torch.zeros(2, 1 if len(sides) == 3 else 3, *sides)
        with torch.no_grad():
            found = deepest(net(image).features)
        expected = [(2, 2 * 2**stage, *(side // 2**stage for side in sides)) for stage in (4, 3, 2)]
        assert [tuple(level.shape) for level in found] == expected


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 8)], ids=["2D", "3D"])
def test_mask_at_a_quarter_is_the_majority_of_the_middle_voxels(shape: tuple[int, ...]) -> None:
    """Without aligned corners, every point of the small map lies between the two middle voxels of four."""
    masks = (torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    middle = masks
    for axis in range(2, masks.ndim):
        middle = middle.unflatten(axis, (-1, 4)).narrow(axis + 1, 1, 2).mean(dim=axis + 1)
    expected = middle > 0.5
    assert (middle == 0.5).any(), "ties must occur, and lose"
    assert torch.equal(masks_of_size(masks, [2] * len(shape)), expected)


def _blocks() -> tuple[Tensor, Tensor]:
    """Features, and a mask of two classes at the size of the features: none of class 1 in the second tile."""
    features = _random(2, 5, 4, 4)
    foreground = torch.zeros(2, 4, 4)
    foreground[0, 1:3, 1:4] = 1.0
    return features, torch.stack((1.0 - foreground, foreground), dim=1)


def test_prototypes_in_fixed_are_unit_means_over_the_mask() -> None:
    """Quirk 11."""
    features, masks = _blocks()
    found = prototypes(features, masks, compat=False)
    assert found.occupied.tolist() == [[True, True], [True, False]]
    f, m = features.numpy(), masks.numpy().astype(bool)
    np.testing.assert_allclose(found.vectors[0, 1], _unit(f[0][:, m[0, 1]].mean(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(found.vectors[1, 0], _unit(f[1][:, m[1, 0]].mean(axis=1)), rtol=1e-6)
    assert (found.vectors[1, 1] == 0).all()


def test_prototypes_in_compat_grow_with_the_area() -> None:
    """Quirk 11."""
    features, masks = _blocks()
    found = prototypes(features, masks, compat=True)
    expected = np.einsum("bcyx,bkyx->bkc", features.numpy(), masks.numpy()) / 16
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6, atol=1e-12)
    ones, half = torch.ones(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    half[..., :2, :] = 1.0
    assert prototypes(ones, half, compat=True).vectors.flatten().tolist() == [0.5, 0.5, 0.5]
    assert prototypes(ones, half, compat=False).vectors.flatten().tolist() == pytest.approx([3**-0.5] * 3)


def _queue(filled: list[int]) -> PrototypeQueue:
    """Three classes, five channels, four slots."""
    vectors = F.normalize(_random(3, 5, 4, seed=9), dim=1)
    counts = torch.tensor(filled)
    vectors = vectors * (torch.arange(4) < counts[:, None])[:, None]
    return PrototypeQueue(vectors, counts, counts % 4)


def _reference_prototype_term(found: Prototypes, queue: PrototypeQueue, filled: list[int]) -> Float64:
    """(tiles, K); NaN where a class has no positive or no negative."""
    v, q = found.vectors.numpy(), queue.vectors.numpy()
    losses = np.full(v.shape[:2], np.nan)
    for tile, k in np.ndindex(losses.shape):
        negatives = [v[tile, k] @ q[j, :, slot] for j in range(3) if j != k for slot in range(filled[j])]
        if filled[k] and negatives:
            losses[tile, k] = _info_nce(v[tile, k] @ q[k, :, : filled[k]].mean(axis=1), negatives)
    return losses


def _found() -> Prototypes:
    return Prototypes(_random(2, 3, 5, seed=2), torch.tensor([[True, True, True], [True, False, True]]))


def test_prototype_term_in_compat_is_the_mean_over_tiles_and_classes() -> None:
    found, filled = _found(), [4, 4, 4]
    expected = _reference_prototype_term(found, _queue(filled), filled).mean()
    assert float(prototype_term(found, _queue(filled), TEMPERATURE, compat=True)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("filled", [[4, 4, 4], [1, 3, 2], [2, 0, 4]], ids=str)
def test_prototype_term_in_fixed_is_over_filled_slots_and_classes_that_are_there(filled: list[int]) -> None:
    """Quirk 9."""
    found = _found()
    losses = _reference_prototype_term(found, _queue(filled), filled)
    counts = found.occupied.numpy() & ~np.isnan(losses)
    term = prototype_term(found, _queue(filled), TEMPERATURE, compat=False)
    assert float(term) == pytest.approx(losses[counts].mean(), rel=1e-9)


@pytest.mark.parametrize("filled", [[0, 0, 0], [0, 3, 0]], ids=["nothing stored", "nothing to compare with"])
def test_prototype_term_in_fixed_is_skipped_while_queues_are_empty(filled: list[int]) -> None:
    """Quirk 9."""
    vectors = _found().vectors.requires_grad_()
    term = prototype_term(Prototypes(vectors, _found().occupied), _queue(filled), TEMPERATURE, compat=False)
    term.backward()
    assert float(term.detach()) == 0.0
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()
