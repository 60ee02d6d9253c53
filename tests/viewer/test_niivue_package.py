"""The viewer's library is what npm publishes, and its licences come with it."""

from __future__ import annotations

import pytest

from tests.debian import ProgramsUnreachableError
from tests.viewer.niivue_package import library_from_npm
from ucseg_runtime.report.page import LIBRARY, LIBRARY_LICENCES, page_text


def test_library_is_the_one_from_npm_without_its_export() -> None:
    try:
        published = library_from_npm()
    except ProgramsUnreachableError as error:
        pytest.skip(f"not run, because the package cannot be fetched: {error}")

    assert page_text(LIBRARY) == published


def test_licences_of_everything_in_the_library_are_there() -> None:
    licences = page_text(LIBRARY_LICENCES)
    bundled = {
        line.split("node_modules/")[1].split("/dist/")[0].split("/esm/")[0].split("/index")[0]
        for line in page_text(LIBRARY).splitlines()
        if line.startswith("// ../../node_modules/")
    }

    assert len(bundled) == 9
    assert [name for name in bundled if f"==== {name}\n" not in licences] == []
    assert "BSD 2-Clause License\n\nCopyright (c) 2021, Niivue" in licences
