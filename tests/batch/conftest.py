"""What the tests of a batch share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.exports import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder into whose one tile the tiny series fit."""
    return write_model(tmp_path_factory.mktemp("model") / "phantom")
