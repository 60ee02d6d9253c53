"""Files that lie in a model folder without being named by its manifest: proofs, calibration and signature."""

from __future__ import annotations

from pathlib import Path

from ucseg_runtime.errors import OutputError
from ucseg_runtime.safe_files import replace_checked


def write_beside_manifest(folder: Path, name: str, text: str) -> None:
    """Put a file into a model folder, in the place of an older one, readable by everybody as the others are.

    Args:
        folder: Model folder.
        name: Of the file.
        text: All of its content.

    Raises:
        OutputError: The file cannot be written; the old one is still there.
    """
    try:
        replace_checked(folder / name, text.encode())
        (folder / name).chmod(0o644)
    except OSError as error:
        raise OutputError(
            f"{name} of the model folder cannot be written ({type(error).__name__}).",
            hint="Copy the model folder to a place where it can be written.",
        ) from error
