"""What is said where the packages of serving are not installed."""

from __future__ import annotations

from ucseg_runtime.errors import BackendUnavailableError


def extra_missing() -> BackendUnavailableError:
    """The error for an import that failed."""
    return BackendUnavailableError("ucseg-serve needs the 'serving' extra:", hint="pip install 'ucseg[serving]'")
