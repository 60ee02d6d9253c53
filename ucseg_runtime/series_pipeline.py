"""From an input with DICOM files to published results: one series, start to end."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset

from ucseg_runtime.backends.choice import choose
from ucseg_runtime.backends.load import engine_load
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.backends.triton_volume import RemoteRun, segment_on_server
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.dicom.instances import Series
from ucseg_runtime.dicom.reader import read_volume, source_headers
from ucseg_runtime.dicom.selection import RejectedSeries, select_series
from ucseg_runtime.dicom.series import SkippedFile, scan
from ucseg_runtime.dicom.stacking import volume_geometry
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.model_folder import Model
from ucseg_runtime.montage import montage_png
from ucseg_runtime.nifti import require_nibabel, write_nifti
from ucseg_runtime.pipeline import Progress, segment_volume
from ucseg_runtime.planning import plan_run
from ucseg_runtime.publish import (
    LABELS_NIFTI,
    MONTAGE,
    REPORT,
    SEGMENTATION,
    UNCERTAINTY,
    UNCERTAINTY_NIFTI,
    Staging,
    check_output_folder,
    space_needed,
    staged_results,
)
from ucseg_runtime.segmentation import EngineInfo, Segmentation, SegmentMeasurement, measure, ready_to_write
from ucseg_runtime.version import __version__
from ucseg_runtime.volume import Volume

_LOGGER = logging.getLogger(__name__)


@dataclass
class StageTimes:
    """Wall time of each stage of one run, in s, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the statements inside, and log one line."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
        _LOGGER.info("%s: %.2f s", name, self.seconds[name])


@dataclass(frozen=True)
class SeriesResult:
    """What became of one input.

    Attributes:
        folder: Where the results are.
        files: Names of the published files.
        series: The series that was segmented.
        rejected: The other series, with reasons.
        skipped: Files that belong to no series, with reasons.
        measurements: One per class.
        engine: What computed it.
        engine_reason: Why this engine and precision were chosen.
        tiles: Number of tiles that the network saw.
        seconds: Wall time per stage.
    """

    folder: Path
    files: tuple[str, ...]
    series: Series
    rejected: tuple[RejectedSeries, ...]
    skipped: tuple[SkippedFile, ...]
    measurements: tuple[SegmentMeasurement, ...]
    engine: EngineInfo
    engine_reason: str
    tiles: int
    seconds: dict[str, float]


def segment_series(
    source: Path,
    folder: Path,
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    series_uid: str | None = None,
    progress: Progress | None = None,
) -> SeriesResult:
    """Segment the one series of an input that fits the model, and publish all results or none.

    Args:
        source: Folder or file with DICOM images.
        folder: Folder for the results; made when missing.
        model: Verified model folder.
        inference: Engine, precision, threads.
        outputs: Which objects are written.
        series_uid: Series that the caller insists on.
        progress: Told after every batch how many tiles are done.

    Raises:
        InputError: The input cannot be segmented as it is.
        BackendError: The engine failed.
        OutputError: The results could not be written; nothing of them is left.
    """
    check_output_folder(folder, outputs.overwrite)
    if outputs.nifti:
        require_nibabel()
    inference = replace(inference, keep_probabilities=outputs.seg_type == "fractional")
    times = StageTimes()
    with times.stage("scan"):
        found = scan(source)
        selection = select_series(found, model.manifest.modality, series_uid)
        inference = _within_memory(selection.chosen, model, inference, outputs)
    results, network = _results(selection.chosen, model, inference, progress, times)
    engine = network.info.engine
    identity = run_identity(model, engine, inference, outputs)
    needed_bytes = space_needed(results.segmentation.geometry.shape, len(results.segmentation.classes), outputs)
    with times.stage("write"), staged_results(folder, outputs.overwrite, needed_bytes) as staging:
        _write_all(staging, results, identity, outputs)
        files = staging.publish(_record(selection.chosen, results, identity, inference, outputs))
    return SeriesResult(
        folder=folder,
        files=files,
        series=selection.chosen,
        rejected=selection.rejected,
        skipped=found.skipped,
        measurements=results.measurements,
        engine=engine,
        engine_reason=network.info.reason,
        tiles=network.tiles,
        seconds=times.seconds,
    )


def run_identity(model: Model, engine: EngineInfo, inference: InferenceOptions, outputs: OutputOptions) -> RunIdentity:
    """Everything but the images that decides what the outputs hold."""
    settings = json.dumps({"seg_type": outputs.seg_type, "skip_air": inference.skip_air}, sort_keys=True)
    return RunIdentity(
        model_name=model.manifest.name,
        model_version=model.manifest.version,
        model_digest=model.digest,
        engine=engine,
        settings_digest=hashlib.sha256(settings.encode()).hexdigest(),
        ucseg_version=__version__,
    )


def _within_memory(
    series: Series, model: Model, inference: InferenceOptions, outputs: OutputOptions
) -> InferenceOptions:
    """The options with so many tiles at the same time as fit the memory budget, where there is one."""
    if not inference.max_memory_mb:
        return inference
    load = engine_load(model, choose(model, inference), inference)
    plan = plan_run(volume_geometry(series), model.manifest, outputs, load, inference.max_memory_mb)
    return replace(inference, most_parallel_tiles=plan.parallel_tiles)


@dataclass(frozen=True, eq=False)
class _Results:
    """Everything that is written.

    Attributes:
        sources: Header of every slice.
        segmentation: With the uncertainty as it is stored.
        measurements: One per class.
        picture: A PNG.
    """

    sources: Sequence[Dataset]
    segmentation: Segmentation
    measurements: tuple[SegmentMeasurement, ...]
    picture: bytes


def _results(
    series: Series, model: Model, inference: InferenceOptions, progress: Progress | None, times: StageTimes
) -> tuple[_Results, TimedBackend]:
    """Read, segment and measure one series.

    The volume and the uncertainty in float32, the largest arrays of a run, go with this function: writing is done
    without them.
    """
    with times.stage("read"):
        volume = read_volume(series)
        sources = source_headers(series)
    segmentation, network = _segment(volume, model, inference, progress, times)
    with times.stage("measure"):
        results = _Results(
            sources=sources,
            measurements=measure(segmentation),
            picture=montage_png(volume, segmentation),
            segmentation=ready_to_write(segmentation),
        )
    return results, network


def _segment(
    volume: Volume, model: Model, inference: InferenceOptions, progress: Progress | None, times: StageTimes
) -> tuple[Segmentation, TimedBackend | RemoteRun]:
    """The segmentation and what computed it; times the network apart from what surrounds it."""
    if inference.server is not None and inference.server.mode == "volume":
        with times.stage("server"):
            return segment_on_server(
                volume, model, inference.server, gate=inference.gate, keep_probabilities=inference.keep_probabilities
            )
    with ExitStack() as stack:
        with times.stage("load model"):
            backend = TimedBackend(stack.enter_context(open_backend(model, inference)))
        with times.stage("before and after network"):
            segmentation = segment_volume(volume, model.manifest, backend, inference, progress)
    times.seconds["before and after network"] -= backend.seconds
    times.seconds["network"] = backend.seconds
    return segmentation, backend


def _write_all(staging: Staging, results: _Results, identity: RunIdentity, outputs: OutputOptions) -> None:
    """One object after the other; of each only its header is kept."""
    # Loading highdicom takes most of a second, which an input that is refused should not cost.
    from ucseg_runtime.dicom.pmap_writer import write_pmap
    from ucseg_runtime.dicom.seg_writer import write_seg
    from ucseg_runtime.dicom.sr_writer import write_sr

    segmentation, sources = results.segmentation, results.sources
    seg = write_seg(staging.path(SEGMENTATION), segmentation, sources, identity, outputs.seg_type)
    pmap = write_pmap(staging.path(UNCERTAINTY), segmentation, sources, identity)
    write_sr(staging.path(REPORT), segmentation, results.measurements, sources, identity, seg, pmap)
    staging.path(MONTAGE).write_bytes(results.picture)
    if outputs.nifti:
        write_nifti(staging.path(LABELS_NIFTI), segmentation.label_map, segmentation.geometry)
        write_nifti(staging.path(UNCERTAINTY_NIFTI), segmentation.uncertainty, segmentation.geometry)


def _record(
    series: Series, results: _Results, identity: RunIdentity, inference: InferenceOptions, outputs: OutputOptions
) -> dict[str, object]:
    """What proves that the series is done. No times, hosts or paths: equal runs write equal records."""
    return {
        "schema_version": 1,
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "source_sop_uids": [str(source.SOPInstanceUID) for source in results.sources],
        "notes": list(series.notes),
        "identity": asdict(identity),
        "settings": {"seg_type": outputs.seg_type, "nifti": outputs.nifti, "skip_air": inference.skip_air},
        "measurements": [asdict(item) for item in results.measurements],
    }
