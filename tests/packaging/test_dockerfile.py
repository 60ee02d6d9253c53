"""The Dockerfile, as far as that can be known without an engine that builds images."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.packaging.dockerfile import ROOT, assert_steps_work, stages

STAGES = ["base", "cpu", "export", "triton"]


def test_stages_are_those_that_are_executed_here() -> None:
    assert list(stages()) == STAGES
    known = {"ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "EXPOSE"}
    assert {instruction for stage in stages().values() for instruction, _ in stage.lines} <= known


def test_linter_has_no_objection() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    finished = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", ["cpu", "export", "triton"])
def test_images_do_not_run_as_root(name: str) -> None:
    assert stages()[name].of("USER") == ["10001:10001"]
    instructions = [instruction for instruction, _ in stages()[name].lines]
    assert "RUN" not in instructions[instructions.index("USER") :]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["cpu", "export", "triton"])
def test_every_step_of_an_image_works_in_a_clean_environment(name: str, tmp_path: Path) -> None:
    """That of `cpu` also runs in test_bare_install, on top of the base install."""
    venv.create(tmp_path / "environment", with_pip=True)
    assert_steps_work(name, tmp_path / "environment", tmp_path)
