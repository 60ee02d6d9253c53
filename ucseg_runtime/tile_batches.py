"""Batches of tiles through a network, one after the other, or one ahead where the network is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from ucseg_runtime.arrays import Float32Array
from ucseg_runtime.backends.base import Backend, TileOutput
from ucseg_runtime.tiling import Tile

Batch: TypeAlias = tuple[Tile, ...]


def inferred(
    batches: Iterable[Batch], read: Callable[[Batch], Float32Array], backend: Backend, *, with_logits: bool
) -> Iterator[tuple[Batch, TileOutput]]:
    """Every batch with what the network makes of it, in order.

    While the caller works on one, the next is in the network if that is elsewhere: an engine of this process has all
    cores already, and one batch at a time takes the least memory.

    Args:
        batches: Tiles that go together.
        read: Gives the voxels of a batch, float32, shape (tiles, channels, z, y, x); always called by this thread.
        backend: The network.
        with_logits: See `Backend.infer`.

    Raises:
        BackendError: The engine failed; no further batch is sent.
    """
    if backend.info.elsewhere:
        yield from _one_ahead(batches, read, backend, with_logits=with_logits)
        return
    for batch in batches:
        yield batch, backend.infer(read(batch), with_logits=with_logits)


def _one_ahead(
    batches: Iterable[Batch], read: Callable[[Batch], Float32Array], backend: Backend, *, with_logits: bool
) -> Iterator[tuple[Batch, TileOutput]]:
    sender = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        before: list[tuple[Batch, Future[TileOutput]]] = []  # at most one
        for batch in batches:
            voxels = read(batch)
            # The one before must have its answer first: nothing more is sent to a network that failed.
            outputs = [(earlier, answer.result()) for earlier, answer in before]
            before = [(batch, sender.submit(backend.infer, voxels, with_logits=with_logits))]
            yield from outputs
        for batch, answer in before:
            yield batch, answer.result()
    finally:
        sender.shutdown(wait=False, cancel_futures=True)
