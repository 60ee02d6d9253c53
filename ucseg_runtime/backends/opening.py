"""Opening a model on an engine of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ucseg_runtime.backends.base import Backend, BackendInfo
from ucseg_runtime.backends.choice import Choice, choose
from ucseg_runtime.backends.cores import usable_cores
from ucseg_runtime.backends.graphs import check_signature
from ucseg_runtime.backends.load import parallel_tiles
from ucseg_runtime.backends.local import LocalBackend
from ucseg_runtime.backends.session import GraphFile, Session, SessionSettings
from ucseg_runtime.backends.triton_client import open_triton_backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.manifest import MERGED, STAGES
from ucseg_runtime.model_folder import Model
from ucseg_runtime.segmentation import EngineInfo


def engine_of(model: Model, options: InferenceOptions) -> EngineInfo:
    """What `open_backend` would compute with on this machine.

    Raises:
        BackendUnavailableError: See `open_backend`.
        EngineMismatchError: See `open_backend`.
        AccuracyGateError: See `open_backend`.
    """
    return _engine_info(choose(model, options))


def _engine_info(chosen: Choice) -> EngineInfo:
    version = chosen.offer.version(chosen.engine.version)
    return EngineInfo(chosen.name, version, chosen.precision, chosen.engine.device, chosen.proven)


@contextmanager
def open_backend(model: Model, options: InferenceOptions, *, staged: bool = False) -> Iterator[Backend]:
    """Open a model on an engine of this machine, for the length of a ``with`` block.

    Args:
        model: Verified model folder.
        options: Engine, precision, threads and whether the accuracy gate counts; or a server.
        staged: Whether to run the four stages one by one: slower, but the logits can be had. A server always has them;
            and who wants to know how far the subnets agree, needs them.

    Raises:
        BackendUnavailableError: The engine is not installed, has not the precision that was asked for, or the model has
            no graph in it.
        EngineMismatchError: The engine runs what is built on site, and this was not.
        AccuracyGateError: No engine that was asked for has passed the accuracy gate for this model.
        BackendError: The engine cannot run the model.
        ArtifactMismatchError: A graph has other tensors than the manifest says.
    """
    if options.server is not None:
        with open_triton_backend(model, options.server, gate=options.gate) as remote:
            yield remote
        return
    staged = staged or options.subnet_agreement
    chosen = choose(model, options)
    if staged and chosen.offer.graph != MERGED:
        raise BackendUnavailableError(f"the stages have no {chosen.precision} graphs.", hint="Use --precision f32.")
    graphs = {key: key for key in STAGES} if staged else {MERGED: chosen.offer.graph}
    threads = options.threads or usable_cores()
    parallel = parallel_tiles(chosen, options, threads)
    settings = SessionSettings(chosen.precision, threads, parallel, options.cache_folder, options.gpu_memory_mb)
    sessions = {role: _session(chosen, model, role, artifact, settings) for role, artifact in graphs.items()}
    info = BackendInfo(_engine_info(chosen), batch_atol=0.0, reason=chosen.reason, parallel_tiles=parallel)
    backend = LocalBackend(model.manifest, info, sessions)
    try:
        yield backend
    finally:
        backend.close()


def _session(chosen: Choice, model: Model, role: str, artifact: str, settings: SessionSettings) -> Session:
    graph = GraphFile(artifact, model.graph(artifact), model.digest, chosen.offer.build)
    session = chosen.engine.open_session(graph, settings)
    check_signature(role, session.signature, model.manifest)
    return session
