"""The routers' recipes: Orthanc with its Lua script, and the module for Mercure."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batch.exports import TINY
from tests.orthanc import Pacs
from tests.pacs.archive import RESULTS, TITLE, running_archive
from tests.pacs.listening import listening
from tests.pacs.programs import PacsPrograms
from tests.phantoms import PHI_CANARIES, write_ct_series
from tests.processes import LOOPBACK, free_port

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_study_that_is_sent_to_orthanc_gets_its_results_with_no_hand_on_it(
    pacs_programs: PacsPrograms, tiny_model: Path, tmp_path: Path
) -> None:
    ct, mr = replace(TINY, study="routed"), replace(TINY, study="routed", series_number=2, modality="MR")
    files = [*write_ct_series(tmp_path / "ct", ct), *write_ct_series(tmp_path / "mr", mr)]
    ports = Pacs(free_port(), free_port())
    (tmp_path / "orthanc").mkdir()
    forward = ("--forward", f"{TITLE}@{LOOPBACK}:{ports.dicom_port}")
    options = (*forward, "--model", tiny_model, "--engine", "openvino", "--quiet-time", 0.5)
    with listening(tmp_path / "listener", *options) as listener:
        router = {
            "DicomModalities": {"ucseg": ["UCSEG", LOOPBACK, listener.port]},
            "LuaScripts": [str(RECIPES / "orthanc" / "ucseg.lua")],
            "StableAge": 1,
        }
        with running_archive(pacs_programs, tmp_path / "orthanc", ports, router) as orthanc:
            assert pacs_programs.send(files, TITLE, ports.dicom_port) == 0

            orthanc.wait_for(ct.study_uid, RESULTS)

            listener.wait_until_it_says("the archive has all 3 objects")
            assert orthanc.modalities(ct.study_uid) == {"CT": 6, "MR": 6, **RESULTS}
            assert set(Counter(orthanc.instance_uids()).values()) == {1}
    assert listener.said.count(": complete with") == 1, (
        "the MR series was not sent, and results do not go round in circles"
    )


@pytest.fixture
def mercure(tmp_path: Path) -> dict[str, str]:
    """The folders and the path as a module of Mercure finds them."""
    program = tmp_path / "bin" / "ucseg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from ucseg_runtime.cli.app import main; main()" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "MERCURE_IN_DIR": str(tmp_path / "in"),
        "MERCURE_OUT_DIR": str(tmp_path / "out"),
    }


def run_module(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = RECIPES / "mercure" / "ucseg-mercure.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_module_of_mercure_writes_objects_and_json(mercure: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "in", replace(TINY, study="canary"))
    (tmp_path / "in" / "task.json").write_text("{}")

    finished = run_module({**mercure, "UCSEG_MODEL": str(tiny_model), "UCSEG_OPTIONS": "--engine openvino --preview"})

    assert finished.returncode == 0, finished.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"segmentation.dcm", "uncertainty.dcm", "report.dcm", "preview.dcm", "result.json"}
    result = (tmp_path / "out" / "result.json").read_text()
    assert [item["label"] for item in json.loads(result)["measurements"]] == [1, 2]
    assert not any(word in result.lower() for word in PHI_CANARIES)


def test_module_of_mercure_fails_with_the_code_and_the_reason(
    mercure: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    write_ct_series(tmp_path / "in", replace(TINY, shape=(8, 24, 24)), omit=(3,))

    finished = run_module({**mercure, "UCSEG_MODEL": str(tiny_model), "UCSEG_OPTIONS": "--engine openvino"})

    assert finished.returncode == 3, finished.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["error"]["code"] == "UCSEG-E114"
