"""The steps from an input with DICOM files to published results, each with a result of its own.

`series_pipeline` takes one series through all of them; `neighbours` lets those of neighbouring series overlap.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset

from ucseg_runtime.backends.base import Backend
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.backends.triton_volume import RemoteRun, segment_on_server
from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.decision import Decision, decide
from ucseg_runtime.dicom.reader import files_sha256, read_voxels, source_headers
from ucseg_runtime.dicom.source_study import source_key
from ucseg_runtime.errors import BackendUnavailableError, InputError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.inputs import Found, grid_of
from ucseg_runtime.model_folder import Model
from ucseg_runtime.montage import montage_png
from ucseg_runtime.nifti_input import NiftiImage, read_image
from ucseg_runtime.pipeline import Progress, segment_volume
from ucseg_runtime.publish import (
    PAGE,
    THUMBNAIL,
    Staging,
    check_output_folder,
    space_needed,
    staged_results,
)
from ucseg_runtime.report.case_report import ReportParts, case_report, report_parts
from ucseg_runtime.run_identity import run_identity, settings_of
from ucseg_runtime.safe_files import write_checked
from ucseg_runtime.segmentation import EngineInfo, Segmentation, SegmentMeasurement, measure, on_slices, ready_to_write
from ucseg_runtime.series_outputs import SeriesOutputs, require_packages, write_objects
from ucseg_runtime.slice_stack import SliceStack, straight_grid
from ucseg_runtime.timeline import ClipMeasurement
from ucseg_runtime.volume import Volume
from ucseg_runtime.volume_interval import with_volume_intervals

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
        found: What was segmented, and what was left out.
        measurements: One per class.
        decision: What is to be done with the results; None for pictures and clips, which are not decided upon.
        notes: What the caller should know of the outputs.
        engine: What computed it.
        engine_reason: Why this engine and precision were chosen.
        tiles: Number of tiles that the network saw.
        seconds: Wall time per stage.
    """

    folder: Path
    files: tuple[str, ...]
    found: Found
    measurements: tuple[SegmentMeasurement, ...] | tuple[ClipMeasurement, ...]
    decision: Decision | None
    notes: tuple[str, ...]
    engine: EngineInfo
    engine_reason: str
    tiles: int
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class ReadSeries:
    """Everything that is taken from the files of an input.

    Attributes:
        found: What was read.
        volume: Its voxels.
        sources: Header of every slice; none of a NIfTI image.
        input_sha256: Of the files of the series, see `files_sha256`; of the NIfTI file.
        times: Of the run so far.
    """

    found: Found
    volume: Volume
    sources: Sequence[Dataset]
    input_sha256: str
    times: StageTimes


@dataclass(frozen=True, eq=False)
class InferredSeries:
    """Everything that is written, and what is told about the run. The volume is not needed any more.

    Attributes:
        found: What was segmented.
        sources: Header of every slice; none of a NIfTI image.
        input_sha256: See `ReadSeries`.
        segmentation: On the straight grid that was segmented, with the uncertainty as it is stored.
        on_slices: The same on the slices as they were acquired; the same object where they lie on that grid.
        measurements: One per class.
        decision: What is to be done with the results.
        picture: A PNG.
        report: For the page; None where none is written.
        identity: Everything but the images that decides what the outputs hold.
        calibration: Digest of the calibration that intervals and limits come from; empty where there is none.
        engine_reason: Why this engine and precision were chosen.
        tiles: Number of tiles that the network saw.
        times: Of the run so far.
        notes: What the caller should know of the figures.
    """

    found: Found
    sources: Sequence[Dataset]
    input_sha256: str
    segmentation: Segmentation
    on_slices: Segmentation
    measurements: tuple[SegmentMeasurement, ...]
    decision: Decision
    picture: bytes
    report: ReportParts | None
    identity: RunIdentity
    calibration: str
    engine_reason: str
    tiles: int
    times: StageTimes
    notes: tuple[str, ...] = ()


def check_outputs(folder: Path, outputs: OutputOptions) -> None:
    """Check before any work that the results can be written.

    Raises:
        OutputError: See `check_output_folder`.
        BackendUnavailableError: A format was asked for whose package is not installed.
    """
    check_output_folder(folder, outputs.overwrite)
    require_packages(outputs)


def read_series(found: Found, times: StageTimes) -> ReadSeries:
    """Read and decode the pixels of a series, and all headers.

    Args:
        found: The series or image.
        times: Of the run so far.

    Raises:
        InputError: The files are damaged, or changed since they were found.
    """
    with times.stage("read"):
        if isinstance(found, NiftiImage):
            return ReadSeries(found, read_image(found), (), found.sha256, times)
        series = found.selection.chosen
        volume, notes = read_voxels(series)
        return ReadSeries(found.with_notes(notes), volume, source_headers(series), files_sha256(series), times)


def infer_series(
    read: ReadSeries,
    model: Model,
    opening: AbstractContextManager[Backend],
    inference: InferenceOptions,
    outputs: OutputOptions,
    progress: Progress | None = None,
) -> InferredSeries:
    """Segment and measure a series.

    The volume and the uncertainty in float32, the largest arrays of a run, are not in what is returned: writing is done
    without them.

    Args:
        read: The series.
        model: Verified model folder.
        opening: Gives the model on an engine; left before measuring, when an engine of one run goes. Not entered where
            a server takes whole volumes.
        inference: What the caller chooses.
        outputs: Which objects will be written.
        progress: Told after every batch how many tiles are done.

    Raises:
        InputError: Objects were asked for that only a DICOM series can have.
        BackendError: The engine failed.
        SegWriteError: The engine returned what cannot be stored.
    """
    _require_dicom_for(outputs, read.found)
    inference = replace(inference, keep_probabilities=outputs.seg_type == "fractional")
    segmentation, network = _segment(read, model, opening, inference, progress)
    with read.times.stage("measure"):
        grid = grid_of(read.found)
        straight = ready_to_write(segmentation)  # first: what cannot be stored cannot be measured
        calibration = model.calibration.calibration
        measurements = with_volume_intervals(measure(segmentation), segmentation, calibration)
        picture = montage_png(read.volume, segmentation)
        report = None
        if "report" in outputs.extras:
            report = report_parts(read.volume, segmentation, model.manifest, read.found.name)
        return InferredSeries(
            found=read.found,
            sources=read.sources,
            input_sha256=read.input_sha256,
            measurements=measurements,
            decision=decide(read.volume, straight, measurements, model),
            picture=picture,
            report=report,
            segmentation=straight,
            on_slices=on_slices(segmentation, grid) if isinstance(grid, SliceStack) else straight,
            identity=run_identity(model, network.info.engine, inference, outputs),
            calibration=model.calibration.digest,
            engine_reason=network.info.reason,
            tiles=network.tiles,
            times=read.times,
            notes=(model.calibration.ignored,) if model.calibration.ignored else (),
        )


def write_series(
    inferred: InferredSeries, folder: Path, inference: InferenceOptions, outputs: OutputOptions
) -> SeriesResult:
    """Write all objects and publish them, the record last.

    Args:
        inferred: What is written.
        folder: Folder for the results; made when missing.
        inference: What the caller chose.
        outputs: Which objects are written.

    Raises:
        OutputError: The results could not be written; nothing of them is left.
    """
    segmentation = inferred.segmentation
    needed_bytes = space_needed(segmentation.geometry.shape, len(segmentation.classes), outputs)
    with inferred.times.stage("write"), staged_results(folder, outputs.overwrite, needed_bytes) as staging:
        notes = (*inferred.notes, *write_objects(staging, _outputs_of(inferred), outputs))
        record = _record(inferred, inference, outputs, notes)
        if inferred.report is not None:
            _write_report(staging, record, inferred.report)
        files = staging.publish(record)
    return SeriesResult(
        folder=folder,
        files=files,
        found=inferred.found,
        measurements=inferred.measurements,
        decision=inferred.decision,
        notes=notes,
        engine=inferred.identity.engine,
        engine_reason=inferred.engine_reason,
        tiles=inferred.tiles,
        seconds=inferred.times.seconds,
    )


def _segment(
    read: ReadSeries,
    model: Model,
    opening: AbstractContextManager[Backend],
    inference: InferenceOptions,
    progress: Progress | None,
) -> tuple[Segmentation, TimedBackend | RemoteRun]:
    """The segmentation and what computed it; times the network apart from what surrounds it."""
    times = read.times
    if inference.server is not None and inference.server.mode == "volume":
        if inference.second_look:
            raise BackendUnavailableError(
                "a server that takes whole volumes takes no second look.", hint="Use --triton-mode tile."
            )
        with times.stage("server"):
            return segment_on_server(
                read.volume,
                model,
                inference.server,
                gate=inference.gate,
                skip_air=inference.skip_air,
                keep_probabilities=inference.keep_probabilities,
                subnet_agreement=inference.subnet_agreement,
            )
    with ExitStack() as stack:
        with times.stage("load model"):
            backend = TimedBackend(stack.enter_context(opening))
        with times.stage("before and after network"):
            segmentation = segment_volume(read.volume, model.manifest, backend, inference, progress)
    times.seconds["before and after network"] -= backend.seconds
    times.seconds["network"] = backend.seconds
    return segmentation, backend


def _require_dicom_for(outputs: OutputOptions, found: Found) -> None:
    dicom = sorted(outputs.extras & {"rtstruct", "preview"})
    if dicom and isinstance(found, NiftiImage):
        raise InputError(
            f"a NIfTI image belongs to no study in which {' and '.join(dicom)} could be written.",
            hint="Leave --rtstruct and --preview out, or give the DICOM series.",
            code="UCSEG-E121",
        )


def _write_report(staging: Staging, record: Mapping[str, object], parts: ReportParts) -> None:
    """The page, which holds the digests of everything that was written before it, and the small picture for lists."""
    write_checked(staging.path(PAGE), case_report(record, staging.fingerprints(), parts))
    write_checked(staging.path(THUMBNAIL), parts.preview_png)


def _outputs_of(inferred: InferredSeries) -> SeriesOutputs:
    found, straight = inferred.found, inferred.segmentation
    grid = straight_grid(straight.geometry)
    return SeriesOutputs(
        straight=straight,
        grid=grid,
        nifti_grid=found.grid if isinstance(found, NiftiImage) else grid,
        on_slices=inferred.on_slices,
        measurements=inferred.measurements,
        decision=inferred.decision,
        picture_png=inferred.picture,
        sources=inferred.sources,
        identity=inferred.identity,
    )


def _record(
    inferred: InferredSeries, inference: InferenceOptions, outputs: OutputOptions, notes: Sequence[str]
) -> dict[str, object]:
    """What proves that the series is done. No times, hosts or paths: equal runs write equal records."""
    return {
        "schema_version": 1,
        **_origin(inferred),
        "notes": [*inferred.found.notes, *notes],
        "identity": inferred.identity.as_json(),
        "settings": settings_of(inference, outputs),
        "calibration": inferred.calibration or None,
        "measurements": [asdict(item) for item in inferred.measurements],
        "decision": inferred.decision.as_json(),
    }


def _origin(inferred: InferredSeries) -> dict[str, object]:
    """Which images were segmented."""
    found = inferred.found
    if isinstance(found, NiftiImage):
        return {"image_sha256": found.sha256}
    series = found.selection.chosen
    return {
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "source_sop_uids": [source_key(source) for source in inferred.sources],
        "input": {"content": found.content, "files_sha256": inferred.input_sha256},
    }
