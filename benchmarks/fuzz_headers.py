"""Damaged headers: does the reading process survive, in time, in memory, and with errors of ucseg alone?

    python benchmarks/fuzz_headers.py --n 100000 [--seed 0] [--state headers.json]

Inputs are made from small series and from the files that pydicom's packages bring, by one to three of: bits flipped,
ends cut, pieces deleted and inserted, other lengths, value representations and tags, elements swapped, repeated and
removed, values from the edge, deep sequences, large private elements, other formats of the pixels. Each follows from
its number, so `--seed NUMBER --n 1` repeats it. JSON; exit code 1 when something was found.
"""

from __future__ import annotations

from fuzz_corpus import header_seeds
from fuzzing import Damage, damage, main
from mutations import HEADER_MUTATIONS


def _damaged_headers() -> Damage:
    return damage(header_seeds(), HEADER_MUTATIONS)


if __name__ == "__main__":
    main(__doc__, _damaged_headers)
