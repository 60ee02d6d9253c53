"""The base install, by the commands of its page: no torch, no development tools, only what is declared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.docs.documents import shell_blocks
from tests.packaging.dockerfile import assert_steps_work
from tests.phantoms import CtPhantom, write_ct_series
from ucseg_runtime.report.page import LIBRARY, LIBRARY_LICENCES

ROOT = Path(__file__).resolve().parents[2]
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, ucseg_runtime
optional = {"ucseg_runtime.nifti"}
for module in pkgutil.walk_packages(ucseg_runtime.__path__, "ucseg_runtime."):
    importlib.import_module(module.name)
heavy = {"torch", "onnx", "onnxruntime", "nibabel", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of the environment that the page on installing makes."""
    folder = tmp_path_factory.mktemp("bare")
    (block,) = shell_blocks("docs/install.md")
    here = block.replace("constraints.txt .\n", f"{ROOT / 'constraints.txt'} {ROOT}\n")
    assert here != block
    # What is imported is compiled then: less than all that is installed.
    environment = {**os.environ, "PIP_NO_COMPILE": "1"}
    installed = subprocess.run(
        ["/bin/bash", "-e", "-c", here], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stdout[-2000:] + installed.stderr[-2000:]
    assert "openvino" in installed.stdout, "by ucseg doctor"
    return folder / "ucseg-env" / "bin" / "python"


def test_wheel_holds_four_packages_and_the_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"ucseg_runtime", "ucseg_export", "ucseg_serving", "ucseg_training"}
    assert "ucseg_runtime/models/torso-ct-demo/manifest.json" in names
    assert "ucseg_runtime/selftest_model/merged.onnx" in names
    assert {f"ucseg_runtime/report/static/{name}" for name in (LIBRARY, LIBRARY_LICENCES)} <= {*names}


def test_base_install_has_no_torch(python: Path) -> None:
    assert run(python, "-c", "import torch").returncode != 0


@pytest.mark.parametrize("arguments", [("repository", "--out", "/nowhere"), ("local",)])
def test_commands_of_serving_say_which_extra_they_need(python: Path, arguments: tuple[str, ...]) -> None:
    said = run(python.with_name("ucseg-serve"), *arguments)
    assert (said.returncode, "UCSEG-E141" in said.stderr, "'serving' extra" in said.stderr) == (5, True, True), said


def test_every_module_of_the_runtime_imports_without_torch(python: Path) -> None:
    finished = run(python, "-c", IMPORT_EVERYTHING)
    assert finished.returncode == 0, finished.stderr


def test_segment_runs_the_demo_model_without_torch(python: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom())
    command = python.with_name("ucseg")

    finished = run(command, "segment", tmp_path / "study", "--out", tmp_path / "out", "--report", "--json")

    assert finished.returncode == 0, finished.stderr
    assert len(json.loads(finished.stdout)["measurements"]) == 5
    assert (tmp_path / "out" / "report.html").is_file()


def test_missing_extra_is_named(python: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "study", CtPhantom())

    finished = run(
        python.with_name("ucseg"), "segment", tmp_path / "study", "--out", tmp_path / "out", "--engine", "onnxruntime"
    )

    assert finished.returncode == 5
    assert "pip install 'ucseg[onnxruntime]'" in finished.stderr


def test_help_imports_nothing_heavy(python: Path) -> None:
    check = (
        "import sys, ucseg_runtime.cli.app; "
        "heavy = {'numpy', 'pydicom', 'highdicom', 'openvino', 'pydantic', 'cv2', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    finished = run(python, "-c", check)
    assert finished.returncode == 0, finished.stderr


def test_every_step_of_the_cpu_image_works_on_the_base_install(python: Path, tmp_path: Path) -> None:
    """The last one here: it adds to the environment. `make test-long` does the same in one of its own."""
    assert_steps_work("cpu", python.parents[1], tmp_path)
