"""The flow itself: one volume in, labels and uncertainty on the same grid out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ucseg_runtime.backends.base import Backend
from ucseg_runtime.config import InferenceOptions
from ucseg_runtime.manifest import ModelSpec
from ucseg_runtime.postprocess import Restoration
from ucseg_runtime.preprocess import preprocess
from ucseg_runtime.segmentation import Segmentation
from ucseg_runtime.stitching import Stitcher
from ucseg_runtime.subnet_agreement import AgreementCounter
from ucseg_runtime.tile_batches import inferred
from ucseg_runtime.tiling import plan_tiles
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
    canvas = Stitcher(plan, spec.probability_channels)
    restoration = Restoration(prepared, volume.geometry, spec, keep_probabilities=options.keep_probabilities)
    agreement = AgreementCounter(plan, spec)
    done = 0
    batches = plan.batches(options.batch_size or backend.info.parallel_tiles)
    for batch, output in inferred(batches, prepared.read, backend, with_logits=options.subnet_agreement):
        for slices in canvas.add(batch, output):
            restoration.add(slices)
        if options.subnet_agreement:
            agreement.add(batch, output)
        done += len(batch)
        if progress is not None:
            progress(done, len(plan.tiles))
    segmentation = restoration.finish(backend.info.engine)
    if options.subnet_agreement:
        segmentation = replace(segmentation, agreement=agreement.classes())
    _LOGGER.info("segmented %d tiles in %.1f s", len(plan.tiles), time.perf_counter() - started)
    return segmentation
