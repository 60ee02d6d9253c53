"""The examples of a batch on SLURM and Kubernetes: checked as text, and run as far as that goes without either."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.batch.exports import tree, write_export, write_model
from ucseg_runtime.version import __version__

FOLDER = Path(__file__).resolve().parents[2] / "serving" / "deploy" / "batch"
SLURM = FOLDER / "slurm-array.sh"
JOB, POLICY = yaml.safe_load_all((FOLDER / "kubernetes-job.yaml").read_text(encoding="utf-8"))
SHARES = 8


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """With `ucseg` of these sources first on the path, and the variables."""
    program = folder / "bin" / "ucseg"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nfrom ucseg_runtime.cli.app import main\nmain()\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", **variables}


def echoing(folder: Path) -> dict[str, str]:
    """With a `ucseg` that says what it was called with."""
    variables = environment(folder)
    (folder / "bin" / "ucseg").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    return variables


def test_slurm_script_is_clean_for_shellcheck() -> None:
    subprocess.run(["/bin/bash", "-n", SLURM], check=True)
    command = [Path(sys.executable).with_name("shellcheck"), SLURM]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


def test_slurm_script_asks_for_a_signal_before_its_time_is_over_and_takes_its_place() -> None:
    text = SLURM.read_text(encoding="utf-8")
    assert "#SBATCH --signal=B:TERM@60" in text
    assert re.search(r"^exec ucseg batch", text, re.MULTILINE), "or the shell would get the signal"
    assert f"#SBATCH --array=1-{SHARES}\n" in text
    assert f"${{UCSEG_SHARES:-{SHARES}}}" in text


@pytest.mark.slow
def test_slurm_tasks_do_the_whole_export(tmp_path: Path) -> None:
    export, model = write_export(tmp_path / "in", 4), write_model(tmp_path / "model")
    options = ["--model", str(model), "--engine", "openvino"]
    variables = {"UCSEG_EXPORT": str(export), "UCSEG_SHARES": "2", "SLURM_CPUS_PER_TASK": "1"}
    for task in ("1", "2"):
        given = environment(tmp_path, **variables, SLURM_ARRAY_TASK_ID=task, UCSEG_RESULTS=str(tmp_path / "shares"))
        subprocess.run([SLURM, *options], check=True, env=given, capture_output=True)

    alone = [tmp_path / "bin" / "ucseg", "batch", export, "--out", tmp_path / "alone", *options]
    subprocess.run(alone, check=True, env=environment(tmp_path), capture_output=True)

    assert len(tree(tmp_path / "alone")) >= 4
    assert tree(tmp_path / "shares") == tree(tmp_path / "alone")


@pytest.mark.parametrize("missing", ["UCSEG_EXPORT", "UCSEG_RESULTS", "SLURM_ARRAY_TASK_ID"])
def test_slurm_script_says_what_it_lacks(tmp_path: Path, missing: str) -> None:
    given = echoing(tmp_path) | {"UCSEG_EXPORT": "e", "UCSEG_RESULTS": "r", "SLURM_ARRAY_TASK_ID": "1"}
    del given[missing]

    done = subprocess.run([SLURM], capture_output=True, text=True, env=given, check=False)

    assert done.returncode != 0
    assert missing in done.stderr
    assert done.stdout == ""


def test_one_share_again_is_the_same_share(tmp_path: Path) -> None:
    given = echoing(tmp_path) | {"UCSEG_EXPORT": "e", "UCSEG_RESULTS": "r", "SLURM_ARRAY_TASK_ID": "3"}

    said = subprocess.check_output([SLURM, "--redo"], text=True, env={**given, "SLURM_ARRAY_TASK_COUNT": "2"})

    assert said.split("\n")[:5] == ["batch", "e", "--out", "r", "--shard"]
    assert said.split("\n")[5] == f"3/{SHARES}"
    assert "--redo" in said


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("manifest", [JOB, POLICY], ids=["job", "policy"])
def test_manifests_fit_the_schemas_of_kubernetes(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_indices_of_the_job_are_all_shares_once(tmp_path: Path) -> None:
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert (JOB["spec"]["completions"], JOB["spec"]["parallelism"]) == (SHARES, SHARES)
    said = []
    for index in range(SHARES):
        given = echoing(tmp_path) | {"JOB_COMPLETION_INDEX": str(index)}
        command = [*container["command"], *container["args"]]
        said.append(subprocess.check_output(command, text=True, env=given).splitlines())
    assert [arguments[-1] for arguments in said] == [f"{share}/{SHARES}" for share in range(1, SHARES + 1)]
    assert {tuple(arguments[:-1]) for arguments in said} == {("batch", "/export", "--out", "/results/tree", "--shard")}


def test_job_s_pods_fulfil_the_restricted_pod_security_standard_and_reach_nothing() -> None:
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    assert "memory" in container["resources"]["limits"]
    assert container["image"].endswith(f":{__version__}")
    assert POLICY["spec"]["podSelector"]["matchLabels"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    assert set(POLICY["spec"]) == {"podSelector", "policyTypes"}, "without a rule nothing is let through"
    assert POLICY["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_job_reads_the_export_only_and_every_mount_is_a_volume() -> None:
    pod = JOB["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert mounts["export"]["readOnly"] is True
    assert volumes["export"]["persistentVolumeClaim"]["readOnly"] is True
    assert "sizeLimit" in volumes["tmp"]["emptyDir"]


def test_job_does_not_repeat_what_would_fail_again_and_is_not_to_blame_for_its_node() -> None:
    disruption, codes = JOB["spec"]["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Ignore"
    assert codes["action"] == "FailIndex"
    assert codes["onExitCodes"]["values"] == [2, 3, 4, 7, 8, 9]
    assert JOB["spec"]["template"]["spec"]["restartPolicy"] == "Never", "the policy needs it"
