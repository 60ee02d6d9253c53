"""One model folder or checkpoint to a model folder with another fusion rule, which needs no weights.

From a model folder the graphs of the subnets are taken byte for byte, with their proof; so nothing has to be trained or
exported again, and nothing but the rule can differ. A checkpoint is for networks that were never exported, also those
without a UPG: its subnets are exported and proved first.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from ucseg_export.calibration.temperature_node import PROVENANCE as TEMPERATURE
from ucseg_export.canonical import checked_bytes, merged_model
from ucseg_export.export_model import (
    ExportRequest,
    check_place,
    checkpoint_provenance,
    export_model,
    spec_of,
    write_model_folder,
)
from ucseg_export.fusion_parity import fusion_parity_rows
from ucseg_export.fusion_stages import fusion_stages
from ucseg_export.manifest_writer import build_manifest
from ucseg_export.parity import parity_rows, require_parity
from ucseg_export.parity_engines import installed_parity_engines
from ucseg_export.parity_tiles import TileSet, case_tiles, phantom_tiles, random_tiles
from ucseg_export.stages import subnet_stages
from ucseg_export.to_onnx import exported_models
from ucseg_runtime.errors import ModelError
from ucseg_runtime.fusion_names import FusionRule, complete_parameters
from ucseg_runtime.manifest import MERGED, STAGES, Manifest, ModelSpec, ParityRow
from ucseg_runtime.model_folder import load_model
from ucseg_training.checkpoint import load_checkpoint

_SUBNETS = ("subnet_a", "subnet_b")


@dataclass(frozen=True)
class FusionRequest:
    """What to fuse, how, and on what to prove it.

    Attributes:
        source: Model folder, or checkpoint of ucseg-train.
        rule: Fusion rule.
        out: Model folder to make.
        parameters: Of the rule, those that are not at their default.
        spec: JSON file that replaces the description stored in a checkpoint.
        cases: Folder of training cases to compare on, beside the made-up tiles.
        tiles_per_set: Random tiles, phantom tiles, and most tiles of each case.
        overwrite: Whether a model folder at `out` is replaced.
    """

    source: Path
    rule: FusionRule
    out: Path
    parameters: Mapping[str, float] = field(default_factory=dict)
    spec: Path | None = None
    cases: Path | None = None
    tiles_per_set: int = 2
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class _Subnets:
    """Proved graphs of two subnets.

    Attributes:
        spec: What the model is.
        models: By artifact key, as they will stand in the merged graph.
        graphs: The files, by artifact key.
        parity: The proof of the files.
    """

    spec: ModelSpec
    models: Mapping[str, onnx.ModelProto]
    graphs: Mapping[str, bytes]
    parity: tuple[ParityRow, ...]


def export_fusion(request: FusionRequest) -> Manifest:
    """Write a model folder whose `upg` and `decode` are a rule, and return its manifest.

    The version of the model gets the rule as build metadata (2.0.0+dempster), so that every output names it. Measured
    quality of the old fused output does not belong to the new one and is left out; an int8 graph and proofs of engines
    are not taken over either.

    Raises:
        OutputExistsError: Something is at the place of the folder, and may not be replaced.
        ModelError: The source cannot be used, or has no UPG where that is asked for.
        ManifestError: The description of a checkpoint's model is missing, wrong, or fits other networks.
        InputError: Cases to compare on cannot be read.
        AccuracyGateError: A graph does not compute the rule, or a subnet not what torch computes.
        BackendError: An engine is missing or cannot run a graph.
        OutputError: The folder cannot be written.
        ValueError: The rule has no such parameter, or it is out of range.
    """
    check_place(request.out, request.overwrite)
    if request.rule == "upg":
        return _with_upg(request)
    complete_parameters(request.rule, request.parameters)  # refuses before anything is exported
    subnets = _subnets_of(request)
    spec = _with_rule(subnets.spec, request)
    stages = fusion_stages(request.rule, spec.activation, request.parameters)
    models = {**subnets.models, **exported_models(stages, spec)}
    models[MERGED] = merged_model(models)
    made = {key: checked_bytes(models[key], key) for key in (*stages, MERGED)}
    graphs = {key: subnets.graphs.get(key) or made[key] for key in (*STAGES, MERGED)}
    manifest = build_manifest(spec, graphs, (), {})
    rows = fusion_parity_rows(request.rule, manifest, graphs, _tile_sets(request, spec), installed_parity_engines())
    require_parity(rows)
    manifest = manifest.model_copy(update={"parity": (*subnets.parity, *rows)})
    write_model_folder(request.out, manifest, graphs, overwrite=request.overwrite)
    return manifest


def _with_upg(request: FusionRequest) -> Manifest:
    """The learned rule: an export like any other."""
    if request.parameters:
        raise ValueError("the fusion rule upg has no parameters")
    if request.source.is_dir():
        raise ModelError(
            "a UPG cannot be made from a model folder; it is learned.",
            hint="Use a folder that has one as it is, or give the checkpoint.",
        )
    return export_model(
        ExportRequest(
            request.source,
            request.out,
            spec=request.spec,
            cases=request.cases,
            tiles_per_set=request.tiles_per_set,
            overwrite=request.overwrite,
        )
    )


def _subnets_of(request: FusionRequest) -> _Subnets:
    return _of_model_folder(request) if request.source.is_dir() else _of_checkpoint(request)


def _of_model_folder(request: FusionRequest) -> _Subnets:
    model = load_model(request.source, whoever_made_it=True)
    manifest = model.manifest
    graphs = {key: model.graph(key) for key in _SUBNETS}
    spec = ModelSpec(**{name: getattr(manifest, name) for name in ModelSpec.model_fields})
    source = {"subnets": f"those of {spec.name} {spec.version}, model digest {model.digest}"}
    return _Subnets(
        spec=spec.model_copy(update={"provenance": {**spec.provenance, **source}}),
        models={key: onnx.load_from_string(content) for key, content in graphs.items()},
        graphs=graphs,
        parity=tuple(row for row in manifest.parity if row.graph in _SUBNETS),
    )


def _of_checkpoint(request: FusionRequest) -> _Subnets:
    checkpoint = load_checkpoint(request.source, needs_upg=False)
    spec = spec_of(request.spec, None, checkpoint)
    models = exported_models(subnet_stages(checkpoint.net), checkpoint.net.config)
    graphs = {key: checked_bytes(model, key) for key, model in models.items()}
    compared = build_manifest(spec, dict.fromkeys((*STAGES, MERGED), b"") | graphs, (), {})
    rows = parity_rows(checkpoint.net, compared, graphs, _tile_sets(request, spec), installed_parity_engines())
    require_parity(rows)
    source = checkpoint_provenance(request.source, checkpoint)
    return _Subnets(spec.model_copy(update={"provenance": {**spec.provenance, **source}}), models, graphs, rows)


def _with_rule(spec: ModelSpec, request: FusionRequest) -> ModelSpec:
    version, _, _ = spec.version.partition("+")
    exporter = f"torch {importlib.metadata.version('torch')}, torch.export"
    return spec.model_copy(
        update={
            "version": f"{version}+{request.rule}",
            "fusion": request.rule,
            "fusion_parameters": dict(request.parameters),
            "training_ranges": None,  # of another uncertainty, and of what another rule finds
            "quality": tuple(row for row in spec.quality if row.output != "fused"),
            # The temperature went with the old read-out.
            "provenance": {**_without(spec.provenance, TEMPERATURE), "fusion_exporter": exporter},
        }
    )


def _without(provenance: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in provenance.items() if key != name}


def _tile_sets(request: FusionRequest, spec: ModelSpec) -> list[TileSet]:
    sets = [random_tiles(spec, request.tiles_per_set), phantom_tiles(spec, request.tiles_per_set)]
    if request.cases is not None:
        sets.append(case_tiles(spec, request.cases, request.tiles_per_set))
    return sets
