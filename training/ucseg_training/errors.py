"""The error that only training has."""

from __future__ import annotations

from ucseg_runtime.errors import UcsegError


class TrainingError(UcsegError):
    """Training cannot start with these cases, cannot go on from this state, or has diverged."""

    exit_code = 4
    default_code = "UCSEG-E160"
