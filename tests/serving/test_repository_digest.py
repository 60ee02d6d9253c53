"""The digest of a repository: what was written is what a server is started on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.proof_phantom import proven
from tests.served_phantom import PHANTOM
from ucseg_runtime.errors import RepositoryError
from ucseg_runtime.model_folder import load_model
from ucseg_serving.cli.app import app
from ucseg_serving.health import served_model
from ucseg_serving.local_server import LocalOptions, running_server
from ucseg_serving.repository_digest import check_digest, repository_digest
from ucseg_serving.server_package import install_server

Damage = Callable[[Path], object]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digest")
    made = run("repository", proven(PHANTOM.write(folder / "phantom")), "--out", folder / "models")
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[-1] == f"repository {repository_digest(folder / 'models')}"
    return folder / "models"


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(repository, tmp_path / "copied")


def test_the_digest_is_that_of_the_list_which_sha256sum_writes(repository: Path) -> None:
    listed = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    found = subprocess.run(["/bin/sh", "-c", listed], cwd=repository, capture_output=True, text=True, check=True)  # noqa: S602
    assert repository_digest(repository) == "sha256:" + found.stdout.split()[0]


def test_verify_prints_the_digest_that_it_accepts(repository: Path) -> None:
    digest = run("verify", repository).stdout.strip()
    assert digest == repository_digest(repository)
    assert run("verify", repository, "--digest", digest).exit_code == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "ucseg_tiles" / "1" / ".gitkeep").unlink(),
        lambda folder: (folder / "ucseg_volume" / "1" / "model.py").write_text("import os\n", encoding="utf-8"),
        lambda folder: (folder / "ucseg_volume" / "1" / "model.py").rename(folder / "ucseg_volume" / "1" / "other.py"),
        lambda folder: (
            (folder / "ucseg_volume" / "1" / "__pycache__").mkdir()
            or (folder / "ucseg_volume" / "1" / "__pycache__" / "model.pyc").write_bytes(b"code")
        ),
    ],
    ids=["missing", "changed", "renamed", "added"],
)
def test_every_change_of_a_file_is_refused(repository: Path, copied: Path, damage: Damage) -> None:
    damage(copied)
    refused = run("verify", copied, "--digest", repository_digest(repository))
    assert refused.exit_code == 4
    assert "UCSEG-E133" in refused.stderr
    assert repository_digest(repository)[:19] in refused.stderr


def test_links_are_no_part_of_a_repository(copied: Path) -> None:
    (copied / "ucseg_volume" / "2").symlink_to(copied / "ucseg_volume" / "1")
    with pytest.raises(RepositoryError, match="ucseg_volume/2 is neither a file nor a folder"):
        repository_digest(copied)


def test_names_that_could_hide_a_second_file_are_refused(copied: Path) -> None:
    (copied / ("a\n" + "0" * 64 + "  b")).touch()
    with pytest.raises(RepositoryError, match="characters that no file"):
        repository_digest(copied)


def test_a_folder_that_is_not_there_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such repository"):
        check_digest(tmp_path / "models", "sha256:" + "0" * 64)


def test_byte_code_that_a_server_left_is_told(repository: Path, copied: Path) -> None:
    with running_server(install_server(), copied, LocalOptions(stop_timeout_s=5.0)) as server:
        healthy = run("health", copied, "--url", server.http_url)
    assert healthy.exit_code == 0, healthy.output
    refused = run("verify", copied, "--digest", repository_digest(repository))
    assert refused.exit_code == 4
    assert "leaves __pycache__ there" in " ".join(refused.stderr.split())
    for left in copied.rglob("__pycache__"):
        shutil.rmtree(left)
    assert run("verify", copied, "--digest", repository_digest(repository)).exit_code == 0


def test_the_model_of_a_repository_is_known_from_its_manifest_alone(copied: Path) -> None:
    whole = load_model(copied / "ucseg_volume" / "model")
    for graph in (copied / "ucseg_volume" / "model").glob("*.onnx"):
        graph.unlink()
    served = served_model(copied)
    assert (served.digest, served.manifest) == (whole.digest, whole.manifest)


def test_a_repository_without_manifest_has_no_health(copied: Path) -> None:
    (copied / "ucseg_volume" / "model" / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match="manifest.json cannot be read"):
        served_model(copied)
