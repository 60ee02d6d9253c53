"""The commands of the page on provenance, in their order: results are verified, a model is signed and then trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.exports import TINY, write_model
from tests.docs.ledger import PROVENANCE, commands_for
from tests.guide_shell import GuideShell
from tests.phantoms import write_ct_series
from ucseg_runtime.errors import UntrustedModelError
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.signatures import TRUST_STORE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_commands_of_the_page_verify_results_and_sign_a_model_that_is_then_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = GuideShell(tmp_path)
    write_ct_series(tmp_path / "STUDY", TINY)
    model = write_model(tmp_path / "MODEL_DIR")
    (tmp_path / "trio.safetensors").write_bytes(b"weights that the manifest does not name")
    shell.run("ucseg segment STUDY --out RESULTS --model MODEL_DIR --engine openvino", monkeypatch)

    for line in commands_for(PROVENANCE, "docs/provenance.md"):
        assert shell.run(line, monkeypatch) or "openssl" in line or "mkdir" in line

    monkeypatch.setenv(TRUST_STORE_VARIABLE, str(tmp_path / "trust"))
    assert load_model(model).manifest.name == "phantom"
    with pytest.raises(UntrustedModelError):
        load_model(write_model(tmp_path / "unsigned"))
