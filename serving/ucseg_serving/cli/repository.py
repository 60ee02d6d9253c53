"""``ucseg-serve repository``, ``ucseg-serve verify`` and ``ucseg-serve template``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ucseg_runtime.cli.options import GateOption
from ucseg_runtime.cli.reporting import reported
from ucseg_serving.cli.options import (
    InstancesOption,
    MaxBatchOption,
    ModelArgument,
    ServedEngineOption,
    ServedPrecisionOption,
    VolumeMemoryOption,
    VolumeOverOption,
)

_OUT = typer.Option("--out", help="Folder of the repository; made.")
_TARGET = typer.Option("--target", help="cpu: embedded engines; others: Triton's own backends, on a GPU.")
_ENGINES = typer.Option("--engines", help="Folder of built TensorRT engines; that of ucseg-export when not given.")
_TRITON = typer.Option("--triton-version", help="Of the server; queues have a size limit from 2.67 on.")
_REPOSITORY = typer.Argument(help="Model repository.")
_DIGEST = typer.Option("--digest", help="Refuse every other repository; as this command prints it, sha256:….")
_OVERWRITE = typer.Option("--overwrite", help="Replace a repository that is there already.")


def repository(
    out: Annotated[Path, _OUT],
    model: ModelArgument = None,
    target: Annotated[Literal["tensorrt", "onnxruntime", "cpu"], _TARGET] = "cpu",
    engine: ServedEngineOption = "auto",
    precision: ServedPrecisionOption = "f32",
    gate: GateOption = True,
    max_batch: MaxBatchOption = 4,
    instances: InstancesOption = 2,
    volume_memory: VolumeMemoryOption = 8.0,
    engines: Annotated[Path | None, _ENGINES] = None,
    triton_version: Annotated[str, _TRITON] = "2.51",
    volume_over: VolumeOverOption = "ucseg_merged",
    overwrite: Annotated[bool, _OVERWRITE] = False,
) -> None:
    """Write a Triton model repository with artifacts that passed the accuracy gate, and check that it fits together."""
    with reported(as_json=False):
        from ucseg_runtime.cache import engines_folder
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_serving.repository import write_repository
        from ucseg_serving.repository_digest import repository_digest
        from ucseg_serving.serving_options import ServingOptions
        from ucseg_serving.weights import WeightsRequest, weights_for

        options = ServingOptions(
            target=target,
            max_batch=max_batch,
            instances=instances,
            volume_memory_gb=volume_memory,
            triton_version=_version(triton_version),
            volume_over=volume_over,
        )
        loaded = load_model(model or default_model_folder())
        request = WeightsRequest(engine, precision, gate, engines or engines_folder())
        weights = weights_for(loaded, request, options)
        write_repository(loaded, weights, options, out, overwrite=overwrite)
        served = weights.served
        typer.echo(
            f"{loaded.manifest.name} {loaded.manifest.version} for {target}: {served.engine} {served.engine_version} "
            f"{served.precision}, up to {max_batch} tiles a request"
        )
        typer.echo(f"repository {repository_digest(out)}")
        if target != "cpu":
            typer.echo("note: this target has never run on a GPU; its configuration alone was checked", err=True)


def verify(folder: Annotated[Path, _REPOSITORY], digest: Annotated[str | None, _DIGEST] = None) -> None:
    """Check that a repository is complete, and print the digest of all of its files."""
    with reported(as_json=False):
        from ucseg_serving.repository_checks import check_repository
        from ucseg_serving.repository_digest import check_digest, repository_digest

        if digest is not None:
            check_digest(folder, digest)
        check_repository(folder)
        typer.echo(digest or repository_digest(folder))


def template(out: Annotated[Path, _OUT], model: ModelArgument = None) -> None:
    """Write the text files of the cpu target without weights, as the sources of ucseg hold them for the demo model."""
    with reported(as_json=False):
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_serving.repository import repository_texts
        from ucseg_serving.serving_options import ServingOptions
        from ucseg_serving.weights import committed_weights

        loaded = load_model(model or default_model_folder(), whoever_made_it=True)
        for path, text in repository_texts(loaded, committed_weights(loaded).served, ServingOptions()).items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding="utf-8")


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise typer.BadParameter(f"{text!r} is no version such as 2.51", param_hint="--triton-version")
    return int(parts[0]), int(parts[1])
