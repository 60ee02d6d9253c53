"""What pynetdicom 3.0 leaves to the garbage collector, which warns of it.

These are sockets on which nobody answered, and files of instances of which only a part came.
"""

from __future__ import annotations

import pytest

FORGOTTEN_SOCKETS = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(s|_io):pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning"
)
"""Mark of tests with archives which are not there, and senders that break off."""
