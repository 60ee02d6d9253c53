"""The manifest: complete, strict, and with every breach named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.model_phantom import ModelPhantom, manifest_fields
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import ManifestError
from ucseg_runtime.manifest import manifest_from_json

Fields = dict[str, Any]


@pytest.fixture
def fields() -> Fields:
    return manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b"content"))


def test_manifest_survives_a_round_trip_through_json(fields: Fields) -> None:
    manifest = manifest_from_json(json.dumps(fields))
    assert manifest_from_json(manifest.model_dump_json()) == manifest


def test_softmax_model_has_a_probability_channel_per_class_and_background(fields: Fields) -> None:
    manifest = manifest_from_json(json.dumps(fields))
    assert (manifest.num_classes, manifest.probability_channels) == (3, 3)


def test_sigmoid_model_has_the_foreground_channel_alone() -> None:
    phantom = ModelPhantom(centres=(0.0, 1.0), activation="sigmoid")
    manifest = manifest_from_json(json.dumps(manifest_fields(phantom, dict.fromkeys(GRAPHS, b""))))
    assert (manifest.num_classes, manifest.probability_channels) == (2, 1)


def swap_labels(fields: Fields) -> None:
    fields["classes"].reverse()


def sigmoid_of_two(fields: Fields) -> None:
    fields["activation"] = "sigmoid"


def no_merged(fields: Fields) -> None:
    del fields["artifacts"]["merged"]


def file_outside(fields: Fields) -> None:
    fields["artifacts"]["merged"]["file"] = "../merged.onnx"


def misspelt(fields: Fields) -> None:
    fields["tiling"]["overlapp"] = 0.5


def descending_knots(fields: Fields) -> None:
    fields["preprocessing"]["intensity"]["knots"] = [[100, 1], [0, 0]]


def overlap_of_one(fields: Fields) -> None:
    fields["tiling"]["overlap"] = 1.0


def short_digest(fields: Fields) -> None:
    fields["artifacts"]["upg"]["sha256"] = "abc"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swap_labels, "labels must be 1, 2, 3"),
        (sigmoid_of_two, "exactly one foreground class"),
        (no_merged, "no artifact for merged"),
        (file_outside, "artifacts.merged.file: .*plain file name"),
        (misspelt, "tiling.overlapp: Extra inputs"),
        (descending_knots, "strictly ascending"),
        (overlap_of_one, "tiling.overlap: .*less than 1"),
        (short_digest, "artifacts.upg.sha256"),
    ],
)
def test_breach_of_the_schema_is_named(fields: Fields, damage: Callable[[Fields], None], reason: str) -> None:
    damage(fields)
    with pytest.raises(ManifestError, match=reason):
        manifest_from_json(json.dumps(fields))


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_unknown_schema_version_is_refused_before_anything_else(fields: Fields, version: object) -> None:
    with pytest.raises(ManifestError, match=f"schema version {version!r}; this ucseg reads version 1") as caught:
        manifest_from_json(json.dumps({"schema_version": version, "unknown": fields}))
    assert "Export the model again" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        manifest_from_json(text)
