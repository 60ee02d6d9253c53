"""Every intensity rule computes its stated formula, on even volumes too, and maps the padding the same way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter, ValidationError

from tests.model_phantom import ModelPhantom, manifest_fields
from tests.volume_phantom import STRAIGHT, centred_geometry
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import InputError, ManifestError
from ucseg_runtime.intensity import (
    ClipMinMax,
    ClipZScore,
    DivideBy255,
    Identity,
    Intensity,
    MinMax,
    PercentileClip,
    PiecewiseLinear,
    ZScore,
    apply_intensity,
    in_network_order,
    intensity_map,
    looks_at_volume,
)
from ucseg_runtime.manifest import Preprocessing, manifest_from_json
from ucseg_runtime.preprocess import preprocess, resample_nearest
from ucseg_runtime.volume import Volume

BRATS = PercentileClip(upper=99.9, over="non_zero_box", scale="z_score", scale_over="positive")
RULES: list[Intensity] = [
    PiecewiseLinear(knots=((-100.0, 0.0), (300.0, 1.0))),
    Identity(),
    DivideBy255(channel_order="bgr"),
    MinMax(),
    ClipMinMax(low=-125.0, high=275.0),
    ZScore(),
    ZScore(over="non_zero"),
    ClipZScore(low=-125.0, high=275.0),
    PercentileClip(lower=1.0, upper=99.0, scale="min_max"),
    BRATS,
]
PIXELWISE = ("piecewise_linear", "identity", "divide_by_255", "clip_min_max")
STRAIGHT_ZYX = STRAIGHT[:, ::-1]


def names(rules: list[Intensity]) -> list[str]:
    return [f"{number} {rule.kind}" for number, rule in enumerate(rules)]


@pytest.fixture
def voxels() -> npt.NDArray[np.float32]:
    """Half of it zeros, values on both sides of 0 and of every window."""
    rng = np.random.default_rng(1)
    image = rng.normal(100.0, 200.0, (7, 9, 11)).astype(np.float32)
    image[rng.random(image.shape) < 0.5] = 0.0
    return image


def expected(image: npt.NDArray[np.float32], rule: Intensity) -> npt.NDArray[np.float64]:
    """The formulas once more, in float64 and one line each."""
    v = image.astype(np.float64)
    inside = v[v > 0]
    clipped = np.clip(v, -125, 275)
    if rule.kind == "percentile_clip" and rule.scale == "min_max":
        low, high = np.percentile(v, [1, 99])
        return (np.clip(v, low, high) - low) / (high - low)
    if rule.kind == "percentile_clip":
        top = np.percentile(v, 99.9)  # no face of this volume is all zero, so the box is the whole of it
        inside = np.minimum(inside, top)
        return (np.minimum(v, top) - inside.mean()) / inside.std()
    formulas = {
        "piecewise_linear": lambda: np.clip((v + 100) / 400, 0, 1),
        "identity": lambda: v,
        "divide_by_255": lambda: v / 255,
        "min_max": lambda: (v - v.min()) / (v.max() - v.min()),
        "clip_min_max": lambda: (clipped + 125) / 400,
        "clip_z_score": lambda: (clipped - clipped.mean()) / clipped.std(),
    }
    if isinstance(rule, ZScore):
        chosen = v if rule.over == "all" else v[v != 0]
        return (v - chosen.mean()) / chosen.std()
    return formulas[rule.kind]()


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_rule_computes_its_formula_in_float32(voxels: npt.NDArray[np.float32], rule: Intensity) -> None:
    values = apply_intensity(voxels, rule)
    assert values.dtype == np.float32
    assert values.shape == voxels.shape
    np.testing.assert_allclose(values, expected(voxels, rule), rtol=2e-5, atol=2e-6)


def test_interpolated_rule_keeps_its_bits(voxels: npt.NDArray[np.float32]) -> None:
    rule = PiecewiseLinear(knots=((-1000.0, -1.6), (-200.0, -1.0), (250.0, 1.5), (1000.0, 2.4)))
    known = np.interp(voxels, [-1000.0, -200.0, 250.0, 1000.0], [-1.6, -1.0, 1.5, 2.4]).astype(np.float32)
    assert apply_intensity(voxels, rule).tobytes() == known.tobytes()


def test_known_answers() -> None:
    voxels = np.array([0.0, 0.0, 2.0, 4.0, 6.0, 8.0], np.float32)
    np.testing.assert_allclose(
        apply_intensity(voxels, ZScore(over="non_zero"))[2:], [-1.3416, -0.4472, 0.4472, 1.3416], atol=1e-4
    )
    np.testing.assert_allclose(apply_intensity(voxels, ZScore(over="non_zero"))[:2], -5 / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(apply_intensity(voxels, MinMax()), voxels / 8)
    np.testing.assert_allclose(apply_intensity(voxels, ClipMinMax(low=2, high=6)), [0, 0, 0, 0.5, 1, 1])
    half = PercentileClip(lower=20, upper=60, scale="min_max")  # the second and the fourth of six sorted voxels
    np.testing.assert_allclose(apply_intensity(voxels, half), [0, 0, 0.5, 1, 1, 1], atol=1e-6)


def test_percentile_of_the_box_leaves_out_the_space_around_it() -> None:
    voxels = np.zeros((10, 10, 10), np.float32)
    voxels[2:4, 2:4, 2:4] = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    rule = PercentileClip(upper=50.0, over="non_zero_box", scale="min_max")
    np.testing.assert_allclose(apply_intensity(voxels, rule).max(), 1.0)
    np.testing.assert_allclose(apply_intensity(voxels, rule)[3, 2, 2], 1.0)  # 4, above the median 3.5 of 0 … 7
    np.testing.assert_allclose(apply_intensity(voxels, rule)[2, 2, 3], 1 / 3.5, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e4])
def test_even_volume_is_not_divided_by_zero(rule: Intensity, value: float) -> None:
    voxels = np.full((4, 5, 6), value, np.float32)
    with np.errstate(all="raise"):
        to_input = intensity_map(voxels, rule)
        values = to_input(np.append(voxels.ravel(), np.float32(-1000.0)))
    assert np.isfinite(values).all()
    assert len(np.unique(values[:-1])) == 1
    if looks_at_volume(rule) and value > 0:
        assert values[0] == 0.0


def test_statistics_do_not_lose_a_small_deviation_on_a_large_mean() -> None:
    voxels = (30000.0 + np.tile([0.0, 1.0], 500_000)).astype(np.float32)
    values = apply_intensity(voxels, ZScore())
    np.testing.assert_allclose(values, np.tile([-1.0, 1.0], 500_000), atol=1e-6)


def test_rule_reads_and_does_not_change_its_volume(voxels: npt.NDArray[np.float32]) -> None:
    before = voxels.copy()
    for rule in RULES:
        apply_intensity(voxels, rule)[...] = 7.0
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_only_rules_that_look_at_the_volume_map_a_tile_otherwise(
    voxels: npt.NDArray[np.float32], rule: Intensity
) -> None:
    tile = voxels[:3, :4, :5]
    alone, within = apply_intensity(tile, rule), apply_intensity(voxels, rule)[:3, :4, :5]
    assert looks_at_volume(rule) == (rule.kind not in PIXELWISE)
    assert np.array_equal(alone, within) == (not looks_at_volume(rule))


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_padding_is_mapped_like_a_voxel_of_the_volume(rule: Intensity) -> None:
    """A corner of air is in the volume already: more air around it must look the same to the network."""
    rng = np.random.default_rng(3)
    image = rng.uniform(0.0, 250.0, (6, 8, 10)).astype(np.float32)
    image[0, 0, 0] = 0.0
    spec = Preprocessing(spacing_mm=(2.0, 1.0, 1.0), intensity=rule, padding_value=0.0)
    prepared = preprocess(Volume(image, centred_geometry(image.shape, (2.0, 1.0, 1.0), STRAIGHT_ZYX), "MR"), spec)
    assert prepared.padding[0] == prepared.voxels[0, 0, 0, 0]
    np.testing.assert_array_equal(prepared.voxels[0], apply_intensity(image, rule))


def test_statistics_are_of_the_volume_on_the_model_grid() -> None:
    image = np.random.default_rng(4).normal(size=(8, 8, 8)).astype(np.float32)
    spec = Preprocessing(spacing_mm=(2.0, 2.0, 2.0), intensity=ZScore(), padding_value=-9.0)
    prepared = preprocess(Volume(image, centred_geometry(image.shape, (1.0, 1.0, 1.0), STRAIGHT_ZYX), "MR"), spec)
    assert prepared.voxels[0].shape == (4, 4, 4)
    assert prepared.voxels[0].mean() == pytest.approx(0.0, abs=1e-6)
    assert prepared.voxels[0].std() == pytest.approx(1.0, rel=1e-6)


def test_channels_are_turned_for_a_network_that_takes_blue_first() -> None:
    rgb = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    np.testing.assert_array_equal(in_network_order(rgb, DivideBy255(channel_order="bgr")), rgb[[2, 1, 0]])
    np.testing.assert_array_equal(in_network_order(rgb, DivideBy255(channel_order="rgb")), rgb)
    np.testing.assert_array_equal(in_network_order(rgb, ZScore()), rgb)
    grey = rgb[:1]
    np.testing.assert_array_equal(in_network_order(grey, DivideBy255(channel_order="bgr")), grey)
    with pytest.raises(InputError, match="4 channels"):
        in_network_order(np.zeros((4, 1, 2, 2), np.float32), DivideBy255(channel_order="bgr"))


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_rule_survives_json(rule: Intensity) -> None:
    adapter: TypeAdapter[Intensity] = TypeAdapter(Intensity)
    found = adapter.validate_json(rule.model_dump_json())
    assert found == rule
    assert type(found) is type(rule)


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_manifest_may_name_any_rule(rule: Intensity) -> None:
    fields = manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))
    fields["preprocessing"]["intensity"] = rule.model_dump(mode="json")
    manifest = manifest_from_json(json.dumps(fields))
    assert manifest.preprocessing.intensity == rule
    assert manifest_from_json(manifest.model_dump_json()) == manifest


def test_manifest_from_before_there_were_kinds_still_loads() -> None:
    fields = manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))
    fields["preprocessing"]["intensity"] = {"knots": [[0, 0], [1, 2]]}
    found = manifest_from_json(json.dumps(fields)).preprocessing
    assert found.intensity == PiecewiseLinear(knots=((0.0, 0.0), (1.0, 2.0)))
    assert (found.plane_shape, found.orientation, found.interpolation) == (None, "LPS", "linear")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "zscore"}, "zscore"),
        ({"kind": "z_score", "over": "brain"}, "over"),
        ({"kind": "clip_min_max", "low": 5, "high": 5}, "low must be less"),
        ({"kind": "clip_z_score", "low": 5, "high": -5}, "low must be less"),
        ({"kind": "clip_min_max", "low": 0}, "high"),
        ({"kind": "clip_min_max", "low": 0, "high": float("inf")}, "finite"),
        ({"kind": "percentile_clip", "lower": 60, "upper": 50, "scale": "min_max"}, "lower must be less"),
        ({"kind": "percentile_clip", "upper": 101, "scale": "min_max"}, "less than or equal to 100"),
        ({"kind": "divide_by_255"}, "channel_order"),
        ({"kind": "min_max", "low": 0}, "Extra inputs"),
        ({"kind": "piecewise_linear", "knots": [[1, 0], [1, 1]]}, "strictly ascending"),
    ],
)
def test_rule_that_cannot_be_meant_is_refused(fields: dict[str, Any], reason: str) -> None:
    adapter: TypeAdapter[Intensity] = TypeAdapter(Intensity)
    with pytest.raises(ValidationError, match=reason):
        adapter.validate_python(fields)


# Planes of one size


@pytest.mark.parametrize(
    ("have", "want", "sources"),
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 6, [0, 0, 0, 1, 1, 1]),
        (6, 2, [1, 4]),
        (4, 2, [1, 3]),
        (5, 3, [0, 2, 4]),
        (3, 5, [0, 0, 1, 2, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_nearest_takes_the_voxel_that_holds_the_centre(have: int, want: int, sources: list[int]) -> None:
    centres = (np.arange(want) + 0.5) * have / want  # from the outer face, in source voxels
    assert np.floor(centres).tolist() == sources
    found = resample_nearest(np.arange(have, dtype=np.int16).reshape(1, have, 1), (1, want, 1))
    assert found.ravel().tolist() == sources
    assert found.dtype == np.int16


def test_planes_of_one_size_keep_their_slices_and_their_box_of_tissue() -> None:
    image = np.arange(3 * 4 * 6, dtype=np.int16).reshape(3, 4, 6)
    geometry = centred_geometry(image.shape, (8.0, 1.5, 1.5), STRAIGHT_ZYX)
    spec = Preprocessing(
        plane_shape=(8, 12), orientation="acquired", interpolation="nearest", intensity=Identity(), padding_value=0.0
    )
    prepared = preprocess(Volume(image, geometry, "MR"), spec)
    np.testing.assert_array_equal(prepared.voxels[0], image.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(prepared.geometry.spacing_mm, (8.0, 0.75, 0.75))
    np.testing.assert_allclose(
        prepared.geometry.lps_from_index((0, -0.5, -0.5)), geometry.lps_from_index((0, -0.5, -0.5))
    )


def test_acquired_orientation_leaves_the_axes_as_they_are() -> None:
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    sagittal = centred_geometry(image.shape, (3.0, 1.0, 1.0), STRAIGHT[:, [0, 2, 1]])  # slices along the patient's x
    volume = Volume(image, sagittal, "MR")
    spec = Preprocessing(plane_shape=(3, 4), orientation="acquired", intensity=Identity(), padding_value=0.0)
    np.testing.assert_array_equal(preprocess(volume, spec).voxels[0], image)
    turned = preprocess(volume, Preprocessing(spacing_mm=(1.0, 1.0, 3.0), intensity=Identity(), padding_value=0.0))
    assert turned.voxels[0].shape != image.shape


@pytest.mark.parametrize("grid", [{}, {"spacing_mm": [1, 1, 1], "plane_shape": [4, 4]}])
def test_preprocessing_names_one_grid(grid: dict[str, Any]) -> None:
    fields = manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))
    fields["preprocessing"] = {"intensity": {"kind": "min_max"}, "padding_value": 0.0, **grid}
    with pytest.raises(ManifestError, match="either spacing_mm or plane_shape"):
        manifest_from_json(json.dumps(fields))
