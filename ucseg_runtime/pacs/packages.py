"""The packages of the extra, checked where they are first needed."""

from __future__ import annotations

import importlib

from ucseg_runtime.errors import BackendUnavailableError


def require_pacs_extra(*modules: str) -> None:
    """Check that modules can be imported, so that a command can fail before it starts.

    Raises:
        BackendUnavailableError: One of them is not installed.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BackendUnavailableError(
                "Working with archives needs the 'pacs' extra:", hint="pip install 'ucseg[pacs]'."
            ) from error
