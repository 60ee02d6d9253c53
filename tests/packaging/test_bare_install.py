"""The wheel in an environment of its own: no torch, no development tools, only what the base install declares."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

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
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a new environment that holds the wheel and its declared dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    installed = run(interpreter, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    assert installed.returncode == 0, installed.stderr
    return interpreter


def test_wheel_holds_four_packages_and_the_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"ucseg_runtime", "ucseg_export", "ucseg_serving", "ucseg_training"}
    assert "ucseg_runtime/models/torso-ct-demo/manifest.json" in names
    assert "ucseg_runtime/selftest_model/merged.onnx" in names
    assert {f"ucseg_runtime/report/static/{name}" for name in (LIBRARY, LIBRARY_LICENCES)} <= {*names}


def test_base_install_has_no_torch(python: Path) -> None:
    assert run(python, "-c", "import torch").returncode != 0


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
