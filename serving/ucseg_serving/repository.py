"""A Triton model repository for one model folder: configurations, and the files that the server loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.accuracy_gate import PROOFS_NAME
from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.graphs import GRAPHS, check_signature
from ucseg_runtime.backends.session import GraphFile, SessionSettings
from ucseg_runtime.backends.triton_tensors import CHECK_MODEL, LOGITS_MODEL, TILES_MODEL, VOLUME_MODEL, stage_model_name
from ucseg_runtime.calibration import CALIBRATION_NAME
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import OutputError, OutputExistsError
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_runtime.model_folder import Model
from ucseg_runtime.signatures import SIGNATURE_NAME
from ucseg_serving.config_pbtxt import Connections, as_pbtxt, model_configs
from ucseg_serving.repository_checks import check_repository
from ucseg_serving.server_models import MODEL_FOLDER
from ucseg_serving.serving_options import Served, ServingOptions

CONFIG_NAME = "config.pbtxt"
VERSION = "1"

_THIN_MODELS = {
    "check": '''"""Tiles that are not finite are refused; see `ucseg_serving.check_model`."""

from ucseg_serving.check_model import CheckModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
''',
    "stage": '''"""A stage of the model on an embedded engine; see `ucseg_serving.stage_model`."""

from ucseg_serving.stage_model import StageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
''',
    "volume": '''"""Whole volumes through the pipeline of ucseg; see `ucseg_serving.volume_model`."""

from ucseg_serving.volume_model import VolumeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
''',
}


@dataclass(frozen=True, eq=False)
class Weights:
    """What computes, and the files that it needs.

    Attributes:
        served: What computes.
        files: Path below the repository to content: graphs and engines.
    """

    served: Served
    files: Mapping[str, bytes]


def connections_of(model: Model) -> Connections:
    """Inputs that every graph of a model really has; the graphs are compiled on the processor to find out.

    Raises:
        ArtifactMismatchError: A graph has other tensors than the manifest says.
        BackendUnavailableError, BackendError: No engine here can read them.
    """
    chosen = choose(model, InferenceOptions(precision="f32", gate=False))
    connections = {}
    for key in GRAPHS:
        graph = GraphFile(key, model.graph(key), model.digest)
        session = chosen.engine.open_session(graph, SessionSettings("f32", threads=1))
        check_signature(key, session.signature, model.manifest)
        connections[key] = tuple(name for name in GRAPHS[key].inputs if name in session.signature.inputs)
        session.close()
    return connections


def repository_texts(model: Model, served: Served, options: ServingOptions) -> dict[str, str]:
    """The text files of a repository, by their paths below it; without weights.

    Raises:
        ArtifactMismatchError: A graph has other tensors than the manifest says.
    """
    configs = model_configs(model.manifest, served, connections_of(model), options)
    texts = {f"{name}/{CONFIG_NAME}": as_pbtxt(config) for name, config in configs.items()}
    # Triton wants a folder for the version even where there is nothing to put into it.
    texts |= {f"{name}/{VERSION}/.gitkeep": "" for name in (TILES_MODEL, LOGITS_MODEL)}
    texts[f"{CHECK_MODEL}/{VERSION}/model.py"] = _THIN_MODELS["check"]
    texts[f"{VOLUME_MODEL}/{VERSION}/model.py"] = _THIN_MODELS["volume"]
    if options.target == "cpu":
        texts |= {f"{stage_model_name(key)}/{VERSION}/model.py": _THIN_MODELS["stage"] for key in GRAPHS}
    return texts


def write_repository(model: Model, weights: Weights, options: ServingOptions, folder: Path, *, overwrite: bool) -> None:
    """Write a repository that a server can be started on, all or nothing, and check it.

    Args:
        model: Verified model folder.
        weights: What computes, and its files.
        options: What the site chooses.
        folder: The repository; made.
        overwrite: Whether a repository that is there already is replaced.

    Raises:
        RepositoryError: The models do not fit each other, or need more memory than there is.
        OutputExistsError: There is something already.
        OutputError: The folder cannot be written.
    """
    if folder.exists() and not overwrite:
        raise OutputExistsError("the repository exists already.", hint="Give --overwrite or another --out.")
    texts = repository_texts(model, weights.served, options)
    files = {**{path: text.encode() for path, text in texts.items()}, **weights.files}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".repository-") as staging:
            complete = Path(staging) / "new"
            for path, content in files.items():
                (complete / path).parent.mkdir(parents=True, exist_ok=True)
                (complete / path).write_bytes(content)
            check_repository(complete)
            if folder.exists():
                shutil.move(folder, Path(staging) / "old")
            complete.replace(folder)
    except OSError as error:
        raise OutputError(
            f"the repository cannot be written ({type(error).__name__}).", hint="Check space and permissions of --out."
        ) from error


def model_folder_files(model: Model) -> dict[str, bytes]:
    """The whole model folder within that of the volume model, where all Python models of the cpu target load it."""
    graphs = {artifact.file: model.graph(key) for key, artifact in model.manifest.artifacts.items()}
    names = (MANIFEST_NAME, PROOFS_NAME, CALIBRATION_NAME, SIGNATURE_NAME)
    return _in_volume_model(graphs | _files_beside(model.folder, names))


def description_files(model: Model) -> dict[str, bytes]:
    """What the volume model must know where other models have the weights: manifest and calibration."""
    return _in_volume_model(_files_beside(model.folder, (MANIFEST_NAME, CALIBRATION_NAME)))


def _files_beside(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _in_volume_model(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{VOLUME_MODEL}/{MODEL_FOLDER}/{name}": content for name, content in files.items()}
