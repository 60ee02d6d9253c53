"""The Dockerfile, as far as that can be known without an engine that builds images."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = ["base", "cpu", "export", "triton"]


@dataclass(frozen=True)
class Stage:
    """A stage and its lines, those of a stage that it starts from first."""

    name: str
    lines: tuple[tuple[str, str], ...]

    def of(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.lines if name == instruction]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for head, body in re.findall(r"^FROM (.+)$((?:\n(?!FROM ).*)*)", TEXT, re.MULTILINE):
        image, name = head.split(" AS ")
        own = [line.partition(" ") for line in body.splitlines() if line and not line.startswith("#")]
        inherited = found[image].lines if image in found else ()
        found[name] = Stage(name, (*inherited, *((instruction, rest) for instruction, _, rest in own)))
    return found


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    ["cpu", pytest.param("export", marks=pytest.mark.long), pytest.param("triton", marks=pytest.mark.long)],
)
def test_every_step_of_an_image_works_in_a_clean_environment(name: str, tmp_path: Path) -> None:
    stage = stages()[name]
    for line in stage.of("COPY"):
        copy_sources(line.split(), tmp_path / "image")
    venv.create(tmp_path / "environment", with_pip=True)
    settings = dict(item.split("=", 1) for line in stage.of("ENV") for item in shlex.split(line))
    path = os.pathsep.join([str(tmp_path / "environment" / "bin"), os.environ["PATH"]])
    steps = stage.of("RUN")
    assert len(steps) == 1
    for step in steps:
        finished = subprocess.run(
            ["/bin/sh", "-c", step],
            cwd=tmp_path / "image",
            env={**os.environ, **settings, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    programs = tmp_path / "environment" / "bin"
    works = {
        "cpu": ([programs / "ucseg", "doctor"], 0, "openvino"),
        "export": ([programs / "ucseg-export", "--help"], 0, "tensorrt"),
        # It gets as far as reading configurations, for which it needs the schema of Triton's client.
        "triton": ([programs / "ucseg-serve", "verify", tmp_path], 4, "UCSEG-E133"),
    }
    command, code, told = works[name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    assert (finished.returncode, told in finished.stdout + finished.stderr) == (code, True), finished.stderr
    assert (name == "export") == bool(list((tmp_path / "environment").glob("lib/*/site-packages/torch")))


def copy_sources(words: list[str], image: Path) -> None:
    """What one COPY line does, for the files and folders of this project."""
    *sources, target = words
    image.mkdir(exist_ok=True)
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, image / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, image)
