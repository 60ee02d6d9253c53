"""Damaged pixel data in every compressed transfer syntax that is read: decoders may die, the reading process may not.

    python benchmarks/fuzz_pixels.py --n 50000 [--seed 0] [--state pixels.json]

Input NUMBER is of transfer syntax NUMBER modulo their count: series of two slices, made up or from pydicom's packages,
with damaged codestreams, items and formats. Each follows from its number, so `--seed NUMBER --n 1` repeats it. JSON;
exit code 1 when something was found.
"""

from __future__ import annotations

from fuzz_corpus import pixel_seeds
from fuzzing import Damage, damage, main
from mutations import PIXEL_MUTATIONS


def _damaged_pixels() -> Damage:
    by_syntax = [damage(seeds, PIXEL_MUTATIONS) for seeds in pixel_seeds().values()]
    return lambda number: by_syntax[number % len(by_syntax)](number)


if __name__ == "__main__":
    main(__doc__, _damaged_pixels)
