"""The manifest of an export: a description that fits the networks, every digest, one fixed form."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import CONFIGS, description
from ucseg_export.manifest_writer import build_manifest, manifest_json, model_spec, quality_rows, read_json
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import ManifestError
from ucseg_runtime.manifest import Manifest, manifest_from_json

CONTENT = {key: f"content of {key}".encode() for key in GRAPHS}
QUALITY = {"data_set": "phantom", "segment": "block 1", "output": "fused", "dice": 0.5}


@pytest.fixture
def manifest() -> Manifest:
    return build_manifest(model_spec(description(CONFIGS["softmax"]), CONFIGS["softmax"]), CONTENT, (), {"added": "x"})


@pytest.mark.parametrize("name", CONFIGS)
def test_description_of_the_networks_is_taken(name: str) -> None:
    spec = model_spec(description(CONFIGS[name]), CONFIGS[name])

    assert spec.num_classes == CONFIGS[name].num_classes


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"channels": 3}, "channels"),
        ({"dim": 2}, "dim"),
        ({"tiling": {"tile_shape": [32, 32, 16]}}, "tile shape"),
        ({"classes": description(CONFIGS["sigmoid"])["classes"]}, "classes"),
    ],
)
def test_description_of_other_networks_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ManifestError, match=f"does not fit the networks: .*{named}"):
        model_spec({**description(CONFIGS["softmax"]), **change}, CONFIGS["softmax"])


def test_description_with_another_activation_is_refused() -> None:
    config = replace(CONFIGS["sigmoid"], activation="softmax")

    with pytest.raises(ManifestError, match="activation sigmoid, networks softmax"):
        model_spec(description(CONFIGS["sigmoid"]), config)


def test_tiles_of_an_xyz_model_are_compared_in_the_networks_order() -> None:
    config = CONFIGS["sigmoid"]  # networks see (32, 16, 48)
    tiling = {"tile_shape": [48, 16, 32], "axis_order": "xyz"}

    assert model_spec({**description(config), "tiling": tiling}, config).tiling.tile_shape == (48, 16, 32)
    with pytest.raises(ManifestError, match="tile shape"):
        model_spec({**description(config), "tiling": {**tiling, "axis_order": "zyx"}}, config)


@pytest.mark.parametrize("broken", [None, [], {}, {**description(CONFIGS["softmax"]), "unknown": 1}])
def test_description_that_breaks_the_schema_is_refused(broken: object) -> None:
    with pytest.raises(ManifestError, match="breaks the schema"):
        model_spec(broken, CONFIGS["softmax"])


def test_manifest_names_size_and_digest_of_every_graph(manifest: Manifest) -> None:
    for key, content in CONTENT.items():
        artifact = manifest.artifacts[key]
        assert artifact.file == f"{key}.onnx"
        assert (artifact.size, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_provenance_is_added_to_that_of_the_description(manifest: Manifest) -> None:
    assert manifest.provenance == {"made by": "tests", "added": "x"}


def test_manifest_text_is_canonical_and_reads_back(manifest: Manifest) -> None:
    text = manifest_json(manifest)

    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert manifest_from_json(text) == manifest


@pytest.mark.parametrize("text", ["[%s, %s]", "%s\n%s\n", " %s \n\n%s"], ids=["list", "lines", "spaced lines"])
def test_quality_is_read_from_a_list_and_from_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quality.json"
    path.write_text(text % ((json.dumps(QUALITY),) * 2), encoding="utf-8")

    rows = quality_rows(read_json(path, "--quality"))

    assert [row.model_dump() for row in rows] == [QUALITY, QUALITY]


@pytest.mark.parametrize("dice", [float("nan"), -0.1, 1.5])
def test_quality_that_is_no_dice_is_refused(dice: float) -> None:
    with pytest.raises(ManifestError, match="row 2 of 2"):
        quality_rows([QUALITY, {**QUALITY, "dice": dice}])


def test_quality_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ManifestError, match="break the schema"):
        quality_rows([{**QUALITY, "jaccard": 1.0}])


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_file_that_is_not_json_is_refused_without_naming_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "canary.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ManifestError) as caught:
        read_json(path, "--spec")

    assert "--spec" in str(caught.value)
    assert "canary" not in str(caught.value)
