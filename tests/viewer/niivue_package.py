"""The NiiVue library as the package holds it, made from the archive that npm publishes.

    python -m tests.viewer.niivue_package

fetches the archive, checks its digest and writes the file that reports are made with; a test compares the two.
"""

from __future__ import annotations

import gzip

from tests.viewer.programs import unpack_npm_package
from ucseg_runtime.report.page import LIBRARY, page_file

NIIVUE_PACKAGE = "@niivue/niivue@0.69.0"
NIIVUE_ARCHIVE = "niivue-niivue-0.69.0.tgz"
NIIVUE_SHA512 = (
    "60c8d0bc9803d56d9bec3ba8c64c250b85716eb80878f449e6ac90cd72b18b6b"
    "f6301560dbce4ffc2210ca0e3aa030c60c871a3656ddf8c86d3bf79d31b5c990"
)
"""As npm publishes it (``dist.integrity``)."""

_EXPORT = "\nexport {"


def library_from_npm() -> str:
    """The library without its export statement, so that a script in the same element sees its names.

    Raises:
        ProgramsUnreachableError: npm is missing or could not fetch the package.
        ValueError: npm served another archive, or the library ends otherwise than expected.
    """
    folder = unpack_npm_package(NIIVUE_PACKAGE, NIIVUE_ARCHIVE, NIIVUE_SHA512)
    library = (folder / "dist" / "index.js").read_text(encoding="utf-8")
    if library.count(_EXPORT) != 1:
        raise ValueError(f"{NIIVUE_PACKAGE} has {library.count(_EXPORT)} export statements, expected one at its end")
    return library[: library.index(_EXPORT)] + "\n"


if __name__ == "__main__":
    page_file(LIBRARY).write_bytes(gzip.compress(library_from_npm().encode(), 9, mtime=0))
