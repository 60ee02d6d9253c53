"""How long to wait before the next try: twice as long each time, up to a limit, never quite the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BackOff:
    """In s.

    Attributes:
        first_s: Most after the first failure.
        longest_s: Most after any.
        draw: A number in [0, 1).
    """

    first_s: float = 2.0
    longest_s: float = 300.0
    draw: Callable[[], float] = random.random

    def seconds(self, tries: int) -> float:
        """Between half and all of what the number of failures so far says."""
        most = min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, 30))
        return most * (0.5 + 0.5 * self.draw())
