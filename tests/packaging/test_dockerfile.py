"""The Dockerfile, as far as that can be known without an engine that builds images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def stage(name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found.group(1)


def test_linter_has_no_objection() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    finished = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", ["cpu", "export", "triton"])
def test_images_do_not_run_as_root(name: str) -> None:
    user = re.findall(r"^USER (\S+)$", stage(name), re.MULTILINE)
    assert user == ["10001:10001"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_step_of_the_cpu_image_works_in_a_clean_environment(tmp_path: Path) -> None:
    for sources, target in re.findall(r"^COPY (.+) (\S+)$", stage("base"), re.MULTILINE):
        for source in sources.split():
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, tmp_path / "image" / target, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                (tmp_path / "image").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "image")
    venv.create(tmp_path / "environment", with_pip=True)
    path = os.pathsep.join([str(tmp_path / "environment" / "bin"), os.environ["PATH"]])
    steps = re.findall(r"^RUN (.+)$", stage("cpu"), re.MULTILINE)
    assert len(steps) == 1
    finished = subprocess.run(
        ["/bin/sh", "-c", steps[0]],
        cwd=tmp_path / "image",
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "phantom" in finished.stdout or "openvino" in finished.stdout
