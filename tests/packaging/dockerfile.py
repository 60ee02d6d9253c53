"""The Dockerfile's stages, and their steps executed in an environment instead of an image."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


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


def assert_steps_work(name: str, environment: Path, work: Path) -> None:
    """Execute the RUN step of a stage, and try the program that it is for.

    Args:
        name: Of the stage.
        environment: A virtual environment, which gets what the step installs.
        work: Empty folder, for the files that the image holds.
    """
    stage, programs = stages()[name], environment / "bin"
    for line in stage.of("COPY"):
        copy_sources(line.split(), work / "image")
    settings = dict(item.split("=", 1) for line in stage.of("ENV") for item in shlex.split(line))
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    steps = stage.of("RUN")
    assert len(steps) == 1
    for step in steps:
        finished = subprocess.run(
            ["/bin/sh", "-c", step],
            cwd=work / "image",
            env={**os.environ, **settings, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    works = {
        "cpu": ([programs / "ucseg", "doctor"], 0, "openvino"),
        "export": ([programs / "ucseg-export", "--help"], 0, "tensorrt"),
        # It gets as far as reading configurations, for which it needs the schema of Triton's client.
        "triton": ([programs / "ucseg-serve", "verify", work], 4, "UCSEG-E133"),
    }
    command, code, told = works[name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    assert (finished.returncode, told in finished.stdout + finished.stderr) == (code, True), finished.stderr
    assert (name == "export") == bool(list(environment.glob("lib/*/site-packages/torch")))


def copy_sources(words: list[str], image: Path) -> None:
    """What one COPY line does, for the files and folders of this project."""
    *sources, target = words
    image.mkdir(exist_ok=True)
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, image / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, image)
