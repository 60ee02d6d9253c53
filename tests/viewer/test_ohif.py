"""A segmentation in the OHIF viewer: what a radiologist sees is the mask, in its place and in its colours.

This looks at one case, the hardest series; `test_ohif_in_full.py` looks at all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.viewer.cases import Case
from tests.viewer.looks import assert_looks_right
from tests.viewer.viewing import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_mask_lies_over_its_tissue_in_the_colours_of_its_segments(viewer: Viewer, tmp_path: Path) -> None:
    assert_looks_right(Case("oblique, numbered downwards", "binary"), viewer, tmp_path)
