"""A description given to the import is checked, filled with what upstream's networks are, and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.training_phantom import tiny_model_spec
from tests.upstream_files import BOX, BOX_TILE, CHAMBERS, PLANE, described, least_description, saved
from tests.upstream_state import CUBE, small, upstream_state
from ucseg_export.manifest_writer import model_spec
from ucseg_runtime.backends.graphs import engine_tile_shape
from ucseg_runtime.errors import ManifestError, ModelError
from ucseg_training.checkpoint import load_checkpoint
from ucseg_training.upstream import import_upstream


@pytest.mark.parametrize("name", ["canary.yaml", "canary.yml", "canary.json", "CANARY.JSON"])
def test_description_is_read_as_yaml_and_as_json(tmp_path: Path, name: str) -> None:
    path, out = saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    description = described(tmp_path, least_description(), name)
    report = import_upstream(path, out, description=description, tile_shape=BOX_TILE)
    assert report.spec is not None
    assert report.spec.name == "tiny"
    assert load_checkpoint(out).model_spec == report.spec.model_dump(mode="json")


def test_description_is_filled_with_what_upstreams_3d_networks_are(tmp_path: Path) -> None:
    path, out = saved(tmp_path, upstream_state(small(CUBE, tokens=245))), tmp_path / "out.safetensors"
    import_upstream(path, out, description=described(tmp_path, least_description()))
    checkpoint = load_checkpoint(out)
    spec = model_spec(checkpoint.model_spec, checkpoint.net.config)  # as the export checks it
    assert (spec.dim, spec.channels, spec.num_classes, spec.activation) == (3, 1, 2, "sigmoid")
    assert spec.tiling.axis_order == "xyz"
    assert spec.tiling.tile_shape == (80, 112, 112)
    assert engine_tile_shape(spec.tiling) == checkpoint.net.config.tile_shape == (112, 112, 80)
    assert spec.postprocessing.largest_component == (1,)
    assert spec.fusion == "upg"
    assert spec.default_precision == "f32"
    assert spec.provenance == {
        "imported_from": f"UC-Seg state dict, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    }


def test_description_is_filled_with_what_upstreams_2d_networks_are(tmp_path: Path) -> None:
    path, out = saved(tmp_path, upstream_state(CHAMBERS)), tmp_path / "out.safetensors"
    import_upstream(path, out, description=described(tmp_path, least_description(classes=3)))
    checkpoint = load_checkpoint(out)
    spec = model_spec(checkpoint.model_spec, checkpoint.net.config)
    assert (spec.dim, spec.channels, spec.num_classes, spec.activation) == (2, 3, 4, "softmax")
    assert (spec.tiling.tile_shape, spec.tiling.axis_order) == ((1, 32, 32), "zyx")
    assert spec.postprocessing.largest_component == ()


def test_what_the_description_says_is_kept(tmp_path: Path) -> None:
    fields = least_description() | {
        "dim": 3,
        "channels": 1,
        "activation": "softmax",
        "default_precision": "bf16",
        "tiling": {"overlap": 0.25, "weighting": "uniform"},
        "postprocessing": {"smallest_component_ml": {"1": 2.5}},
        "provenance": {"patients": "80 of one centre"},
    }
    path, out = saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    report = import_upstream(path, out, description=described(tmp_path, fields), tile_shape=BOX_TILE)
    assert report.spec is not None
    assert report.config.activation == report.spec.activation == "softmax"
    assert report.spec.default_precision == "bf16"
    assert (report.spec.tiling.overlap, report.spec.tiling.weighting) == (0.25, "uniform")
    assert report.spec.postprocessing.largest_component == ()
    assert report.spec.postprocessing.smallest_component_ml == {1: 2.5}
    assert set(report.spec.provenance) == {"patients", "imported_from"}


@pytest.mark.parametrize(
    ("tiling", "networks"),
    [
        pytest.param({"tile_shape": [32, 48, 48]}, (48, 48, 32), id="upstream's axes"),
        pytest.param({"tile_shape": [48, 48, 32], "axis_order": "xyz"}, (32, 48, 48), id="said to be upstream's"),
        pytest.param({"tile_shape": [32, 48, 48], "axis_order": "zyx"}, (32, 48, 48), id="trained on other axes"),
    ],
)
def test_tile_shape_of_the_description_counts(
    tmp_path: Path, tiling: dict[str, Any], networks: tuple[int, ...]
) -> None:
    fields = least_description() | {"tiling": tiling}
    path, out = saved(tmp_path, upstream_state(BOX)), tmp_path / "out.safetensors"
    report = import_upstream(path, out, description=described(tmp_path, fields))
    assert report.config.tile_shape == networks
    assert report.spec is not None
    assert report.spec.tiling.tile_shape == tuple(tiling["tile_shape"])


def test_tile_shape_of_a_2d_description_counts(tmp_path: Path) -> None:
    path, out = saved(tmp_path, upstream_state(PLANE)), tmp_path / "out.safetensors"
    good = described(tmp_path, least_description() | {"tiling": {"tile_shape": [1, 32, 32]}})
    assert import_upstream(path, out, description=good).config.tile_shape == (32, 32)
    wrong = described(tmp_path, least_description() | {"tiling": {"tile_shape": [1, 48, 48]}})
    with pytest.raises(ModelError, match="4 tokens of 16 x 16 voxels in a tile; a tile of 48 x 48 voxels"):
        import_upstream(path, out, description=wrong)


def _import_error(folder: Path, fields: object, name: str = "canary.yaml", **arguments: Any) -> ManifestError:
    """The error of an import, which must leave nothing behind and tell no path."""
    path, out = saved(folder, upstream_state(BOX)), folder / "out.safetensors"
    description = folder / name if fields is None else described(folder, fields, name)
    with pytest.raises(ManifestError) as caught:
        import_upstream(path, out, description=description, **{"tile_shape": BOX_TILE, **arguments})
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 2}, "dim 2, networks 3"),
        ({"channels": 3}, "channels 3, networks 1"),
        ({"fusion": "mean"}, "fusion mean, networks upg"),
        ({"tiling": {"tile_shape": [48, 48, 32]}}, "tile shape in the networks' order of axes (32, 48, 48), networks"),
        ({"tiling": {"axis_order": "zyx", "tile_shape": [32, 48, 48]}}, "(32, 48, 48), networks (48, 48, 32)"),
        ({"classes": tiny_model_spec(2)["classes"], "activation": "softmax"}, "classes with background 3, networks 2"),
    ],
)
def test_description_of_other_networks_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    error = _import_error(tmp_path, least_description() | change)
    assert named in error.message


def test_activation_that_contradicts_the_description_is_refused(tmp_path: Path) -> None:
    error = _import_error(tmp_path, least_description() | {"activation": "sigmoid"}, activation="softmax")
    assert "activation sigmoid, networks softmax" in error.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"licence": None}, "licence: "),
        ({"unknown": 1}, "unknown: Extra inputs"),
        ({"activation": "relu"}, "activation: "),
        ({"fusion": "vote"}, "fusion: "),
        ({"tiling": 7}, "tiling: "),
        ({"tiling": {"tile_shape": [0, 1]}}, "tiling.tile_shape"),
        ({"tiling": {"overlap": 1.5}}, "tiling.overlap: "),
        ({"version": 1.0}, "version: "),
    ],
)
def test_description_that_breaks_the_schema_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    error = _import_error(
        tmp_path, least_description() | change, tile_shape=None if "tile_shape" in named else BOX_TILE
    )
    assert "breaks the schema" in error.message
    assert named in error.message


def test_every_missing_field_is_named(tmp_path: Path) -> None:
    message = _import_error(tmp_path, {}).message
    for name in ("name", "version", "licence", "intended_use", "modality", "classes", "preprocessing"):
        assert f"{name}: Field required" in message


@pytest.mark.parametrize("fields", [[1, 2], "text", 5], ids=["list", "text", "number"])
def test_description_without_names_is_refused(tmp_path: Path, fields: object) -> None:
    assert "expected names with values" in _import_error(tmp_path, fields).message


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("canary.json", b'{\n"name": }', "not JSON: line 2"),
        ("canary.yaml", b"name: x\nclasses: [", "not YAML: line 2"),
        ("canary.yaml", b"name: !!python/object/apply:os.getcwd []", "not YAML: line 1"),
        ("canary.yaml", b"name: \x00", "not YAML"),
        ("canary.yaml", b"\xff\xfe\xff", "cannot be read"),
        ("canary.json", b"\xff", "cannot be read"),
        ("canary.json", b"[" * 100_000, "cannot be read"),
        ("canary.yaml", None, "cannot be read (FileNotFoundError)"),
    ],
)
def test_description_that_cannot_be_parsed_is_refused(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert named in _import_error(tmp_path, None, name).message
