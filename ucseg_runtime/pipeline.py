"""The flow itself: one volume in, labels and uncertainty on the same grid out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ucseg_runtime.backends.base import Backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.postprocess import Restoration
from ucseg_runtime.preprocess import Prepared, preprocess
from ucseg_runtime.second_look import averaged, second_look_plan
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.stitching import Stitched, Stitcher, joined
from ucseg_runtime.subnet_agreement import AgreementCounter
from ucseg_runtime.tile_batches import inferred
from ucseg_runtime.tiling import TilePlan, plan_tiles
from ucseg_runtime.volume import Volume

Progress = Callable[[int, int], None]
"""Called with the number of tiles that are done and the number of all tiles."""

_LOGGER = logging.getLogger(__name__)


def segment_volume(
    volume: Volume, spec: ModelSpec, backend: Backend, options: InferenceOptions, progress: Progress | None = None
) -> Segmentation:
    """Run the whole method on one volume. The statements below are the data-flow diagram.

    Args:
        volume: Any orientation and spacing; voxels in modality units.
        spec: What the model fixes.
        backend: The same model, open on some engine.
        options: What the caller chooses; engine, precision and threads were settled when the backend was opened.
        progress: Told after every batch how many tiles are done.

    Returns:
        Labels and uncertainty on the grid of `volume`; on request how far the subnets agree.

    Raises:
        BackendError: The engine failed or returned something unusable.
    """
    started = time.perf_counter()
    prepared = preprocess(volume, spec.preprocessing, channels=spec.channels, skip_air=options.skip_air)
    plan = plan_tiles(prepared.spatial_shape, spec.tiling, prepared.region)
    restoration = Restoration(prepared, volume.geometry, spec, keep_probabilities=options.keep_probabilities)
    agreement = AgreementCounter(plan, spec) if options.subnet_agreement else None
    stitched = _stitched(plan, prepared, spec, backend, options, agreement, progress)
    if options.second_look:
        stitched = _looked_at_again(plan, stitched, prepared, spec, backend, options, progress)
    for slices in stitched:
        restoration.add(slices)
    segmentation = restoration.finish(backend.info.engine)
    if agreement is not None:
        segmentation = replace(segmentation, agreement=agreement.classes())
    _LOGGER.info("segmented %d tiles in %.1f s", len(plan.tiles), time.perf_counter() - started)
    return segmentation


def _stitched(
    plan: TilePlan,
    prepared: Prepared,
    spec: ModelSpec,
    backend: Backend,
    options: InferenceOptions,
    agreement: AgreementCounter | None,
    progress: Progress | None,
) -> Iterator[Stitched]:
    """All slices of the model grid, as soon as no later tile touches them."""
    canvas = Stitcher(plan, spec.probability_channels)
    done = 0
    batches = plan.batches(options.batch_size or backend.info.parallel_tiles)
    for batch, output in inferred(batches, prepared.read, backend, with_logits=agreement is not None):
        yield from canvas.add(batch, output)
        if agreement is not None:
            agreement.add(batch, output)
        done += len(batch)
        if progress is not None:
            progress(done, len(plan.tiles))


def _looked_at_again(
    plan: TilePlan,
    stitched: Iterable[Stitched],
    prepared: Prepared,
    spec: ModelSpec,
    backend: Backend,
    options: InferenceOptions,
    progress: Progress | None,
) -> Iterator[Stitched]:
    """The whole model grid, averaged with tiles of a second look where it is uncertain."""
    everything = slice(0, plan.spatial_shape[0])
    first = joined(list(stitched), everything)
    more = second_look_plan(plan, first, spec)
    if not more.tiles:
        yield first
        return
    second = joined(list(_stitched(more, prepared, spec, backend, options, None, progress)), everything)
    _LOGGER.info("looked again at %d tiles", len(more.tiles))
    yield averaged(plan, first, more, second)
