"""The steps from pictures or a clip to published results; those for volumes are in `series_steps`.

Frames are read while they are segmented, a few at a time, so that memory does not grow with the length of a clip but by
its compressed label maps and the segmentation that is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from ucseg_runtime.arrays import Float32Array, UInt8Array
from ucseg_runtime.backends.base import Backend
from ucseg_runtime.backends.timed import TimedBackend
from ucseg_runtime.clip_model import frames_at_a_time
from ucseg_runtime.clip_picture import ClipPicture
from ucseg_runtime.config import EmptyFrames, InferenceOptions, OutputOptions, SegEncoding
from ucseg_runtime.dicom.frame_images import files_of
from ucseg_runtime.dicom.frame_reader import FrameReader
from ucseg_runtime.dicom.frame_scales import pixel_areas_mm2
from ucseg_runtime.dicom.frame_sources import file_headers, frame_origins, frame_sources
from ucseg_runtime.dicom.reader import files_sha256
from ucseg_runtime.errors import BackendUnavailableError, InputError
from ucseg_runtime.geometry import frame_grid
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.inputs import FoundClip
from ucseg_runtime.label_frames import LabelFrames
from ucseg_runtime.manifest import SegmentClass
from ucseg_runtime.model_folder import Model
from ucseg_runtime.pipeline import Progress, segment_volume
from ucseg_runtime.publish import MONTAGE, SEGMENTATION, TIMELINE, Staging, space_needed, staged_results
from ucseg_runtime.run_identity import run_identity, settings_of
from ucseg_runtime.safe_files import write_checked
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.series_steps import SeriesResult, StageTimes
from ucseg_runtime.tiling import plan_tiles
from ucseg_runtime.timeline import FrameFigures, Timeline, figures_of_frame
from ucseg_runtime.volume import Volume

_KEPT: tuple[EmptyFrames, ...] = ("omit", "keep")
_ENCODINGS = [SegEncoding(seg_type, "auto", empty) for seg_type in ("binary", "labelmap") for empty in _KEPT]
"""What a segmentation of frames can be; the compression is the usual one."""


@dataclass(frozen=True, eq=False)
class ReadClip:
    """What is taken from the files of a clip before it is segmented; its frames are read then.

    Attributes:
        found: What was read.
        headers: Of every file.
        input_sha256: Of the files, see `files_sha256`.
        times: Of the run so far.
    """

    found: FoundClip
    headers: tuple[Dataset, ...]
    input_sha256: str
    times: StageTimes


@dataclass(frozen=True, eq=False)
class InferredClip:
    """Everything that is written, and what is told about the run.

    Attributes:
        found: What was segmented.
        headers: Of every file.
        input_sha256: Of the files.
        labels: Of every frame.
        timeline: Figures of every frame.
        picture: A PNG.
        identity: Everything but the images that decides what the outputs hold.
        engine_reason: Why this engine and precision were chosen.
        tiles: Number of tiles that the network saw.
        times: Of the run so far.
    """

    found: FoundClip
    headers: tuple[Dataset, ...]
    input_sha256: str
    labels: LabelFrames
    timeline: Timeline
    picture: bytes
    identity: RunIdentity
    engine_reason: str
    tiles: int
    times: StageTimes


def read_clip(found: FoundClip, times: StageTimes) -> ReadClip:
    """Read the headers of a clip.

    Args:
        found: The clip.
        times: Of the run so far.

    Raises:
        InputError: The files changed since they were found.
    """
    with times.stage("read"):
        series = found.selection.chosen
        return ReadClip(found, file_headers(series), files_sha256(series), times)


def infer_clip(
    read: ReadClip,
    model: Model,
    opening: AbstractContextManager[Backend],
    inference: InferenceOptions,
    outputs: OutputOptions,
    progress: Progress | None = None,
) -> InferredClip:
    """Read, segment and measure the frames of a clip, a few at a time.

    Args:
        read: The clip, its files still there.
        model: Verified model folder.
        opening: Gives the model on an engine.
        inference: What the caller chooses.
        outputs: Which objects will be written.
        progress: Told after every batch how many tiles of the whole clip are done.

    Raises:
        InputError: A frame is damaged, or the caller wants what only volumes can have.
        BackendError: The engine failed, or takes no frames.
    """
    _require_possible(inference, outputs)
    series, times, spec = read.found.selection.chosen, read.times, model.manifest
    result = _ClipResult(read, spec.classes)
    with ExitStack() as stack:
        with times.stage("load model"):
            backend = TimedBackend(stack.enter_context(opening))
        with times.stage("before and after network"), FrameReader(series, spec.channels) as reader:
            step = frames_at_a_time(spec, series.rows, series.columns)
            counted = _Counted(progress, series.number_of_instances * _tiles_per_frame(model))
            for first in range(0, series.number_of_instances, step):
                frames = reader.read(slice(first, first + step))
                grid = frame_grid(*frames.shape[1:])
                volume = Volume(frames, grid, spec.modality)
                result.add(first, frames, segment_volume(volume, spec, backend, inference, counted.part(backend.tiles)))
    times.seconds["before and after network"] -= backend.seconds
    times.seconds["network"] = backend.seconds
    with times.stage("measure"):
        return InferredClip(
            found=read.found,
            headers=read.headers,
            input_sha256=read.input_sha256,
            labels=result.labels,
            timeline=result.timeline(),
            picture=result.picture.png(result.timeline()),
            identity=run_identity(model, backend.info.engine, inference, outputs),
            engine_reason=backend.info.reason,
            tiles=backend.tiles,
            times=times,
        )


def write_clip(
    inferred: InferredClip, folder: Path, inference: InferenceOptions, outputs: OutputOptions
) -> SeriesResult:
    """Write all results and publish them, the record last.

    Args:
        inferred: What is written.
        folder: Folder for the results; made when missing.
        inference: What the caller chose.
        outputs: Which objects are written.

    Raises:
        OutputError: The results could not be written; nothing of them is left.
    """
    labels, measurements = inferred.labels, inferred.timeline.measurements()
    needed_bytes = space_needed((len(labels), *labels.frame_shape), len(inferred.timeline.classes), outputs)
    with inferred.times.stage("write"), staged_results(folder, outputs.overwrite, needed_bytes) as staging:
        _write_all(staging, inferred, outputs)
        files = staging.publish(_record(inferred, inference, outputs))
    return SeriesResult(
        folder=folder,
        files=files,
        found=inferred.found,
        measurements=measurements,
        decision=None,
        notes=(),
        engine=inferred.identity.engine,
        engine_reason=inferred.engine_reason,
        tiles=inferred.tiles,
        seconds=inferred.times.seconds,
    )


class _ClipResult:
    """What is kept of the frames that were segmented so far."""

    def __init__(self, read: ReadClip, classes: tuple[SegmentClass, ...]) -> None:
        series = read.found.selection.chosen
        self.labels = LabelFrames(series.rows, series.columns)
        self.picture = ClipPicture(series.number_of_instances, classes)
        self._figures: list[FrameFigures] = []
        self._origins = frame_origins(series, read.headers)
        self._areas = _areas_by_frame(read)
        self._classes = classes

    def add(self, first: int, frames: UInt8Array, segmentation: Segmentation) -> None:
        """Take the next frames, shape (channels, frames, rows, columns), with their segmentation."""
        planes = zip(segmentation.label_map, segmentation.uncertainty, strict=True)
        for index, (labels, uncertainty) in enumerate(planes):
            self.labels.append(labels)
            self._figures.append(figures_of_frame(labels, uncertainty, next(self._areas), self._classes))
            self.picture.add(first + index, frames[:, index], labels, uncertainty)

    def timeline(self) -> Timeline:
        """The figures of all frames so far."""
        return Timeline(self._origins, tuple(self._figures), self._classes)


class _Counted:
    """Turns progress within some frames into progress within the whole clip."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total

    def part(self, done_before: int) -> Progress | None:
        """What is told of the frames after `done_before` tiles."""
        progress = self._progress
        if progress is None:
            return None
        return lambda done, _: progress(done_before + done, self._total)


def _areas_by_frame(read: ReadClip) -> Iterator[Float32Array]:
    """Area of every pixel in mm² for every frame, in order."""
    series = read.found.selection.chosen
    for file, header in zip(files_of(series), read.headers, strict=True):
        areas = pixel_areas_mm2(header, series.rows, series.columns)
        for _ in range(file.pixel_format.frames):
            yield areas


def _tiles_per_frame(model: Model) -> int:
    plane_shape = model.manifest.preprocessing.plane_shape
    assert plane_shape is not None  # noqa: S101  (see require_picture_model)
    return len(plan_tiles((1, *plane_shape), model.manifest.tiling).tiles)


def _require_possible(inference: InferenceOptions, outputs: OutputOptions) -> None:
    if inference.server is not None and inference.server.mode == "volume":
        raise BackendUnavailableError(
            "a server that takes whole volumes takes no frames.", hint="Use --triton-mode tile."
        )
    if outputs.encoding not in _ENCODINGS:
        raise _impossible("a segmentation of fractions, or with another compression", "--seg-type binary or labelmap")
    if outputs.extras or outputs.uncertainty != "pm":
        asked = sorted({*outputs.extras, *(["a map of uncertainty"] if outputs.uncertainty != "pm" else [])})
        raise _impossible(" and ".join(asked), "the segmentation and the time line, without further outputs")
    if inference.subnet_agreement:
        raise _impossible("how far the subnets agree", "the segmentation and the time line")
    if inference.second_look:
        raise InputError(
            "a second look is for volumes; frames are segmented some at a time.",
            hint="Leave --second-look out.",
            code="UCSEG-E121",
        )


def _impossible(what: str, instead: str) -> InputError:
    return InputError(
        f"{what} cannot be written of pictures and clips, whose frames have no place in the patient.",
        hint=f"Ask for {instead}.",
        code="UCSEG-E121",
    )


def _write_all(staging: Staging, inferred: InferredClip, outputs: OutputOptions) -> None:
    # Loading highdicom takes most of a second, which an input that is refused should not cost.
    from ucseg_runtime.dicom.frame_seg_writer import write_frame_seg

    sources = frame_sources(inferred.found.selection.chosen, inferred.headers)
    classes, identity = inferred.timeline.classes, inferred.identity
    write_frame_seg(staging.path(SEGMENTATION), inferred.labels, classes, sources, identity, outputs.encoding)
    write_checked(staging.path(MONTAGE), inferred.picture)
    write_checked(staging.path(TIMELINE), inferred.timeline.as_csv().encode())


def _record(inferred: InferredClip, inference: InferenceOptions, outputs: OutputOptions) -> dict[str, object]:
    """What proves that the clip is done. No times of the run, hosts or paths: equal runs write equal records."""
    series = inferred.found.selection.chosen
    return {
        "schema_version": 1,
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "source_sop_uids": [file.sop_instance_uid for file in files_of(series)],
        "input": {"content": inferred.found.content, "files_sha256": inferred.input_sha256},
        "notes": list(inferred.found.notes),
        "identity": inferred.identity.as_json(),
        "settings": settings_of(inference, outputs),
        "measurements": [asdict(item) for item in inferred.timeline.measurements()],
        "timeline": inferred.timeline.columns(),
    }
