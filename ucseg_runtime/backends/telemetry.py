"""Importing packages that report to a web service, without their doing so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Make ``import openvino`` and ``import nncf`` silent: both report, and openvino 2026.4 marks the home folder.

    While the block runs, the telemetry package cannot be imported, and both packages then take the stand-in that they
    carry for this case. Remove when importing them no longer sends anything.
    """
    if _TELEMETRY in sys.modules:  # somebody else has chosen it; that is not ours to undo
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # documented way to forbid an import
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
