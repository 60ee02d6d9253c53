"""What tests of whole commands share; a module that needs another model or study has its own under the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that passed the accuracy gate on every engine; tests do not change it."""
    return proven(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom"))


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of 12 slices; tests do not change it."""
    folder = tmp_path_factory.mktemp("small-study")
    write_ct_series(folder, CtPhantom(shape=(12, 40, 48)))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A series of 20 slices in a folder inside, beside a file that is no image; the test's own."""
    write_ct_series(tmp_path / "study" / "nested", CtPhantom(shape=(20, 40, 48)))
    (tmp_path / "study" / "notes.txt").write_text("not an image")
    return tmp_path / "study"
