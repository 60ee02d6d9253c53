"""The proof: it passes for the exported graphs, and for nothing that computes something else."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.export.conftest import Exported
from tests.training_phantom import AIR_HU, block_case
from ucseg_export.canonical import checked_bytes
from ucseg_export.manifest_writer import build_manifest
from ucseg_export.parity import parity_rows, parity_table, require_parity
from ucseg_export.parity_engines import TOLERANCE, installed_parity_engines
from ucseg_export.parity_tiles import TileSet, case_tiles, phantom_tiles, random_tiles, tiles_from_file
from ucseg_export.stages import inference_stages
from ucseg_export.to_onnx import exported_models
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.errors import AccuracyGateError, ArtifactMismatchError, InputError, TileShapeError
from ucseg_runtime.intensity import ZScore
from ucseg_runtime.manifest import ModelSpec, ParityRow
from ucseg_runtime.preprocess import apply_intensity
from ucseg_training.data.case import save_case


def rows_of(exported: Exported, graphs: Mapping[str, bytes] | None = None) -> tuple[ParityRow, ...]:
    graphs = graphs or exported.graphs
    manifest = build_manifest(exported.spec, exported.graphs, (), {})
    tile_sets = [random_tiles(exported.spec, 2), phantom_tiles(exported.spec, 1)]
    return parity_rows(exported.net, manifest, graphs, tile_sets, installed_parity_engines())


def with_changed_weight(graph: bytes, ending: str, factor: float) -> bytes:
    """The graph with the first weight of this name's ending multiplied."""
    model = onnx.load_from_string(graph)
    weight = next(item for item in model.graph.initializer if item.name.endswith(ending))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    return model.SerializeToString()


def row(difference: float) -> ParityRow:
    return ParityRow(graph="upg", inputs="i", reference="r", max_abs_difference=difference, tolerance=TOLERANCE)


def test_every_graph_agrees_with_torch_on_every_engine_and_tile_set(exported: Exported) -> None:
    rows = rows_of(exported)

    require_parity(rows)
    assert len(rows) == len(GRAPHS) * 2 * 2
    assert {row.graph for row in rows} == set(GRAPHS)
    assert {word for row in rows for word in row.inputs.split() if word in ("onnxruntime", "openvino")} == {
        "onnxruntime",
        "openvino",
    }


def test_graphs_fed_with_exact_logits_have_the_strict_tolerance(softmax: Exported) -> None:
    assert {row.tolerance for row in rows_of(softmax) if row.graph in ("upg", "decode")} == {TOLERANCE}


def test_logits_too_large_for_the_strict_tolerance_are_measured_by_what_torch_is_off(softmax: Exported) -> None:
    net = copy.deepcopy(softmax.net)
    *_, last_norm = (module for module in net.upg.final_head.modules() if isinstance(module, nn.BatchNorm3d))
    with torch.no_grad():
        last_norm.weight.mul_(1e4)
        last_norm.bias.mul_(1e4)
    stages = {"upg": inference_stages(net)["upg"]}
    upg = {key: checked_bytes(model, key) for key, model in exported_models(stages, net.config).items()}
    others = {key: softmax.graphs[key] for key in ("subnet_b", "decode")}
    large = replace(softmax, net=net)

    found = rows_of(large, {**others, **upg})
    rows = {row.graph: row for row in found if "random" in row.inputs and "onnxruntime" in row.inputs}

    assert TOLERANCE < rows["upg"].tolerance < 1.0
    assert rows["upg"].max_abs_difference <= rows["upg"].tolerance
    assert rows["subnet_b"].tolerance == rows["decode"].tolerance == TOLERANCE


@pytest.mark.parametrize("key", ["upg", "merged"])
def test_norm_folded_without_its_shift_fails(key: str, softmax: Exported) -> None:
    broken = {**softmax.graphs, key: with_changed_weight(softmax.graphs[key], "upg.shift", 0.0)}

    with pytest.raises(AccuracyGateError, match=f"worst: graph {key}") as caught:
        require_parity(rows_of(softmax, broken))

    assert caught.value.exit_code == 4


def test_bias_that_is_one_percent_off_fails_on_every_engine_and_tile_set(softmax: Exported) -> None:
    broken = with_changed_weight(softmax.graphs["subnet_b"], "out_conv.bias", 1.01)
    rows = rows_of(softmax, {"subnet_b": broken})

    assert len(rows) == 4
    assert all(row.max_abs_difference > row.tolerance for row in rows)


def test_graph_of_another_model_is_refused(softmax: Exported, sigmoid: Exported) -> None:
    with pytest.raises(ArtifactMismatchError, match="upg"):
        rows_of(softmax, {"upg": sigmoid.graphs["upg"]})


@pytest.mark.parametrize("difference", [math.nan, math.inf, 2 * TOLERANCE])
def test_one_bad_row_among_good_ones_fails(difference: float) -> None:
    with pytest.raises(AccuracyGateError, match="1 of 3 comparisons"):
        require_parity([row(0.0), row(difference), row(TOLERANCE)])


def test_no_rows_prove_nothing() -> None:
    with pytest.raises(AccuracyGateError, match="no graph"):
        require_parity([])


def test_table_has_one_line_per_row() -> None:
    table = parity_table([row(0.0), row(3.25e-5)])

    assert table.count("| upg |") == 2
    assert "| 3.2e-05 | 1e-04 |" in table


def test_phantom_tiles_hold_even_regions_and_borders(softmax: Exported) -> None:
    tiles = phantom_tiles(softmax.spec, 2).tiles
    air = float(apply_intensity(np.float32([AIR_HU]), softmax.spec.preprocessing.intensity)[0])

    assert tiles.shape == (2, 1, *softmax.spec.tiling.tile_shape)
    assert 0.05 < float(np.mean(tiles < air + 0.05)) < 0.95
    assert not np.array_equal(tiles[0], tiles[1])


def test_case_tiles_are_the_cases_voxels_in_network_units(softmax: Exported, tmp_path: Path) -> None:
    case = block_case()
    for name in ("first", "second"):
        save_case(case, tmp_path / f"{name}.npz")

    found = case_tiles(softmax.spec, tmp_path, per_case=3)

    expected = apply_intensity(case.voxels, softmax.spec.preprocessing.intensity)
    assert found.tiles.shape == (6, 1, 32, 32, 32)
    assert found.name == "real (6 of 2 cases)"
    np.testing.assert_array_equal(found.tiles[0, 0, 4:28, :, :], expected[:, :32, :32])


def test_rule_that_looks_at_the_volume_sees_all_of_the_case(softmax: Exported, tmp_path: Path) -> None:
    case = block_case()
    save_case(case, tmp_path / "only.npz")
    rule = ZScore(over="all")
    preprocessing = softmax.spec.preprocessing.model_copy(update={"intensity": rule})
    spec = softmax.spec.model_copy(update={"preprocessing": preprocessing})

    found = case_tiles(spec, tmp_path, per_case=1)

    inside = found.tiles[0, 0, 4:28, :, :]
    np.testing.assert_array_equal(inside, apply_intensity(case.voxels, rule)[:, :32, :32])
    assert abs(float(inside.mean())) > 0.01, "a tile by itself would have a mean of 0"


def turned(spec: ModelSpec) -> ModelSpec:
    tiling = spec.tiling.model_copy(update={"axis_order": "xyz", "tile_shape": (16, 32, 48)})
    return spec.model_copy(update={"tiling": tiling})


def test_tiles_of_an_xyz_model_have_the_networks_axis_order(softmax: Exported, tmp_path: Path) -> None:
    spec = turned(softmax.spec)
    save_case(block_case(), tmp_path / "only.npz")

    sets = [random_tiles(spec, 1), phantom_tiles(spec, 1), case_tiles(spec, tmp_path, per_case=1)]

    assert [tile_set.tiles.shape for tile_set in sets] == [(1, 1, 48, 32, 16)] * 3


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_given_tiles_are_read(softmax: Exported, tmp_path: Path, ending: str) -> None:
    tiles = random_tiles(softmax.spec, 2).tiles
    path = tmp_path / f"tiles.{ending}"
    np.save(path, tiles) if ending == "npy" else np.savez(path, tiles=tiles)

    found: TileSet = tiles_from_file(softmax.spec, path)

    np.testing.assert_array_equal(found.tiles, tiles)


@pytest.mark.parametrize("shape", [(1, 32, 32, 32), (0, 1, 32, 32, 32), (2, 1, 32, 32, 16), (2, 3, 32, 32, 32)])
def test_given_tiles_of_another_shape_are_refused(softmax: Exported, tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "tiles.npy", np.zeros(shape, np.float32))

    with pytest.raises(TileShapeError, match="expected \\(tiles, 1, 32, 32, 32\\)"):
        tiles_from_file(softmax.spec, tmp_path / "tiles.npy")


@pytest.mark.parametrize("content", [b"", b"not an array", b"PK\x03\x04 broken archive", None])
def test_given_tiles_that_are_no_array_are_refused_without_naming_the_file(
    softmax: Exported, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "canary.npz"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError) as caught:
        tiles_from_file(softmax.spec, path)

    assert "canary" not in str(caught.value)


def test_folder_without_cases_and_file_that_is_no_case_are_refused(softmax: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no NPZ"):
        case_tiles(softmax.spec, tmp_path, per_case=1)

    np.savez(tmp_path / "a.npz", something_else=np.zeros(1))
    with pytest.raises(InputError, match="case 1 of 1 cannot be read"):
        case_tiles(softmax.spec, tmp_path, per_case=1)
