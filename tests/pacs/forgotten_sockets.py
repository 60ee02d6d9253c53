"""pynetdicom 3.0 leaves sockets on which nobody answered to the garbage collector, which warns of them."""

from __future__ import annotations

import pytest

FORGOTTEN_SOCKETS = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning", "ignore:unclosed <s:ResourceWarning"
)
"""Mark of tests that try to reach archives which are not there."""
