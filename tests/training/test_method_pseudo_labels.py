"""Hard labels from probabilities, and largest components, against drawings and scipy used one mask at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from ucseg_training.method import Method, MethodConfig
from ucseg_training.method.pseudo_labels import largest_components, prototype_masks, pseudo_labels
from ucseg_training.nets import TrioConfig

VOLUMES, IMAGES, ACDC = TrioConfig.upstream_3d(), TrioConfig.upstream_2d_binary(), TrioConfig.upstream_acdc()
SOFTMAX_3D = replace(VOLUMES, num_classes=3, activation="softmax")
MODES = pytest.mark.parametrize("mode", ["compat", "fixed"])


def method(trio: TrioConfig, **values: Any) -> Method:
    return Method(MethodConfig(**values), trio)


def drawing(text: str) -> Tensor:
    """bool, (1, rows, columns) from a drawing in which # is True."""
    return torch.tensor([[character == "#" for character in row] for row in text.split()])[None]


def channels(background: list[float], foreground: list[float]) -> Tensor:
    """Probabilities of one image of one row."""
    return torch.tensor([background, foreground]).reshape(1, 2, 1, -1)


def _reference_largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if count == 0:
        return mask
    sizes = [(components == number).sum() for number in range(1, count + 1)]
    return np.asarray(components == 1 + int(np.argmax(sizes)))


@pytest.mark.parametrize(
    ("masks", "kept"),
    [
        pytest.param("##..# ##..# ....#", "##... ##... .....", id="the larger one"),
        pytest.param("#.... .#... ..#.. ...## #....", "#.... .#... ..#.. ...## .....", id="corners touch"),
        pytest.param("##.## ..... .....", "##... ..... .....", id="the first of equal ones"),
        pytest.param("..... .....", "..... .....", id="nothing"),
        pytest.param("##### #####", "##### #####", id="everything"),
    ],
)
def test_largest_component_of_a_drawing(masks: str, kept: str) -> None:
    assert torch.equal(largest_components(drawing(masks)), drawing(kept))


def test_corners_touch_in_3d() -> None:
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 1, 1, 1] = mask[0, 2, 0, 2] = True
    assert torch.equal(largest_components(mask), mask)


@pytest.mark.parametrize("shape", [(7, 12, 11), (7, 6, 7, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_masks_of_a_batch_do_not_touch_each_other(shape: tuple[int, ...], share: float) -> None:
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share
    masks[2] = False
    found = largest_components(masks)
    expected = np.stack([_reference_largest(mask) for mask in masks.numpy()])
    assert (expected != masks.numpy()).any(), "components must be dropped"
    np.testing.assert_array_equal(found.numpy(), expected)
    other_memory = masks.transpose(1, -1).contiguous().transpose(1, -1)
    assert not other_memory.is_contiguous()
    np.testing.assert_array_equal(largest_components(other_memory).numpy(), expected)


@MODES
def test_3d_pseudo_label_is_the_largest_component_of_foreground(mode: Any) -> None:
    probabilities = torch.zeros(1, 2, 3, 1, 6)
    probabilities[0, 1, :, 0] = torch.tensor([[0.5, 0.9, 0.1, 0.49, 0.9, 0.0]]).repeat(3, 1)
    probabilities[0, 1, 2, 0, 4] = 0.2
    probabilities[:, 0] = 0.7  # channel 0 has no say
    target = pseudo_labels(probabilities, method(VOLUMES, mode=mode))
    foreground = torch.tensor([True, True, False, False, False, False]).repeat(3, 1)
    assert target.complete
    assert torch.equal(target.present[0, 1, :, 0], foreground)
    assert torch.equal(target.present[0, 0, :, 0], ~foreground)


def test_2d_sigmoid_channels_decide_for_themselves_in_compat_and_foreground_decides_in_fixed() -> None:
    """Quirk 19."""
    probabilities = channels([0.6, 0.6, 0.4, 0.4, 0.5], [0.6, 0.4, 0.6, 0.4, 0.5])
    compat, fixed = (pseudo_labels(probabilities, method(IMAGES, mode=mode)).present for mode in ("compat", "fixed"))
    assert compat[0, :, 0].int().tolist() == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
    assert fixed[0, :, 0].int().tolist() == [[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]]


def test_softmax_pseudo_label_keeps_the_largest_component_of_every_class() -> None:
    labels = np.array([[1, 1, 0, 2, 2], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [2, 0, 3, 3, 0]])
    scores = torch.from_numpy(np.stack([labels == k for k in range(4)])[None].astype(np.float32))
    kept = np.array([[1, 1, 0, 2, 2], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 3, 0]])
    for mode in ("compat", "fixed"):
        target = pseudo_labels(scores.softmax(1), method(ACDC, mode=mode))
        np.testing.assert_array_equal(target.label_map[0].numpy(), kept)
        assert (target.present.sum(dim=1) == 1).all()


@pytest.mark.parametrize("trio", [ACDC, SOFTMAX_3D], ids=["2D", "3D"])
def test_softmax_without_components_is_the_greatest_class_in_fixed_and_above_half_in_compat(trio: TrioConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, trio.num_classes, *[4] * trio.dim, generator=generator)
    probabilities = logits.softmax(1)
    fixed, compat = (
        pseudo_labels(probabilities, method(trio, mode=mode, largest_component=False)).present
        for mode in ("fixed", "compat")
    )
    assert (probabilities.amax(dim=1) < 0.5).any(), "some voxels must be undecided"
    np.testing.assert_array_equal(fixed.int().numpy().argmax(axis=1), probabilities.numpy().argmax(axis=1))
    assert (fixed.sum(dim=1) == 1).all()
    np.testing.assert_array_equal(compat.numpy(), probabilities.numpy() > 0.5)


def test_pseudo_labels_have_no_gradient() -> None:
    probabilities = torch.rand(1, 2, 4, 4, requires_grad=True)
    for mode in ("compat", "fixed"):
        assert not pseudo_labels(probabilities, method(IMAGES, mode=mode)).values.requires_grad
        assert not prototype_masks(probabilities, method(IMAGES, mode=mode)).requires_grad


def test_prototype_masks_are_largest_components_where_they_are_asked_for() -> None:
    probabilities = torch.rand(2, 2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    for mode in ("compat", "fixed"):
        masks = prototype_masks(probabilities, method(VOLUMES, mode=mode))
        foreground = np.stack([_reference_largest(item) for item in probabilities[:, 1].numpy() >= 0.5])
        np.testing.assert_array_equal(masks.numpy(), np.stack([~foreground, foreground], axis=1).astype(np.float32))


def test_prototype_masks_without_components_are_the_probabilities() -> None:
    probabilities = channels([0.6, 0.25, 0.4], [0.75, 0.5, 0.125])
    compat, fixed = (prototype_masks(probabilities, method(IMAGES, mode=mode)) for mode in ("compat", "fixed"))
    assert torch.equal(compat, probabilities)
    assert fixed[0, :, 0].tolist() == [[0.25, 0.5, 0.875], [0.75, 0.5, 0.125]]
