"""Where this user's machine keeps what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

ENGINES_VARIABLE = "UCSEG_ENGINES"


def cache_folder() -> Path:
    """Where fetched archives are kept: ``UCSEG_CACHE``, else ``ucseg`` in the user's cache folder."""
    chosen = os.environ.get("UCSEG_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ucseg"


def compiled_models_folder() -> Path:
    """Where models are kept as an engine of this machine compiled them: ``compiled`` in the cache folder."""
    return cache_folder() / "compiled"


def engines_folder() -> Path:
    """Where engines that were built on site are kept: ``UCSEG_ENGINES``, else ``engines`` in the cache folder."""
    chosen = os.environ.get(ENGINES_VARIABLE)
    return Path(chosen) if chosen else cache_folder() / "engines"
