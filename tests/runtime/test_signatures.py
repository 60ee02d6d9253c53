"""Who vouches for a model folder, and whom a site trusts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from tests.batch.exports import TINY, write_model
from tests.calibration_phantom import calibration
from tests.phantoms import write_ct_series
from tests.signing import write_key
from ucseg_export.cli.app import app as export_app
from ucseg_runtime.calibration import CALIBRATION_NAME
from ucseg_runtime.cli.app import app
from ucseg_runtime.errors import UntrustedModelError
from ucseg_runtime.manifest import MANIFEST_NAME
from ucseg_runtime.model_folder import load_model
from ucseg_runtime.signatures import ALLOW_UNSIGNED_VARIABLE, SIGNATURE_NAME, TRUST_STORE_VARIABLE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def trusting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private key of a site that trusts nothing but its public half."""
    key = write_key(tmp_path, "site")
    monkeypatch.setenv(TRUST_STORE_VARIABLE, str(tmp_path / "site"))
    return key


def sign(model: Path, key: Path, *options: str) -> Any:
    return CliRunner().invoke(export_app, ["sign", str(model), "--key", str(key), *options])


def test_without_a_trust_store_signatures_do_not_matter(model: Path) -> None:
    (model / SIGNATURE_NAME).write_text("nothing")
    assert load_model(model).signer == ""


def test_a_site_runs_what_its_keys_have_signed_and_nothing_else(model: Path, trusting: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedModelError, match="not signed, and a trust store is configured"):
        load_model(model)
    before = load_model(model, whoever_made_it=True)

    result = sign(model, trusting)

    assert result.exit_code == 0, result.output
    after = load_model(model)
    assert after.digest == before.digest, "a signature is no part of what it signs"
    assert after.signer in result.stdout
    stranger = write_key(tmp_path, "stranger")
    assert sign(model, stranger, "--overwrite").exit_code == 0
    with pytest.raises(UntrustedModelError, match="none of the 1 in the trust store"):
        load_model(model)


def test_a_changed_model_has_lost_its_signature(model: Path, trusting: Path) -> None:
    sign(model, trusting)
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    (model / MANIFEST_NAME).write_text(json.dumps({**manifest, "intended_use": "everything"}))
    with pytest.raises(UntrustedModelError, match="is about the model"):
        load_model(model)


def test_a_calibration_that_was_not_signed_is_refused(model: Path, trusting: Path) -> None:
    """It decides what is accepted."""
    sign(model, trusting)
    loaded = load_model(model)
    made_up = calibration(loaded.digest, loaded.manifest.num_classes - 1)
    (model / CALIBRATION_NAME).write_text(made_up.as_json())
    with pytest.raises(UntrustedModelError, match="calibration of the model is not the one"):
        load_model(model)
    assert sign(model, trusting, "--overwrite").exit_code == 0
    assert load_model(model).calibration.calibration == made_up


def as_another_model(signature: dict[str, Any], digest: str) -> dict[str, Any]:
    return {**signature, "model_digest": digest}


def bits_turned(signature: dict[str, Any], digest: str) -> dict[str, Any]:
    return {**signature, "signature": "A" + signature["signature"][1:]}


def no_ascii(signature: dict[str, Any], digest: str) -> dict[str, Any]:
    return {**signature, "signature": "é"}


def no_base64(signature: dict[str, Any], digest: str) -> dict[str, Any]:
    return {**signature, "signature": "%"}


@pytest.mark.parametrize("forge", [as_another_model, bits_turned, no_base64, no_ascii])
@pytest.mark.parametrize("allowed", ["", "1"])
def test_a_false_signature_is_refused_even_where_unsigned_models_are_allowed(
    model: Path,
    trusting: Path,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[dict[str, Any], str], dict[str, Any]],
    allowed: str,
) -> None:
    sign(model, trusting)
    signature = json.loads((model / SIGNATURE_NAME).read_text())
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    (model / MANIFEST_NAME).write_text(json.dumps({**manifest, "intended_use": "everything"}, indent=1))
    digest = load_model(model, whoever_made_it=True).digest
    forged = forge({**signature, "model_digest": digest}, digest)
    (model / SIGNATURE_NAME).write_text(json.dumps(forged))
    monkeypatch.setenv(ALLOW_UNSIGNED_VARIABLE, allowed)
    with pytest.raises(UntrustedModelError, match="is false"):
        load_model(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}'])
def test_a_signature_that_cannot_be_read_is_told(model: Path, trusting: Path, text: str) -> None:
    (model / SIGNATURE_NAME).write_text(text)
    with pytest.raises(UntrustedModelError, match="breaks its schema"):
        load_model(model)


def rsa_key() -> bytes:
    public = generate_private_key(65537, 2048).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no"),
        (b"nothing", "no public key in its PEM file 1"),
        (b"x" * 70_000, "more than 64 KiB"),
        (rsa_key(), "another kind than Ed25519 in its PEM file 1"),
    ],
)
def test_a_trust_store_that_cannot_be_used_refuses_every_model(
    model: Path, trusting: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    sign(model, trusting)
    key = tmp_path / "site" / "key.pem"
    key.unlink() if content is None else key.write_bytes(content)
    with pytest.raises(UntrustedModelError, match=message):
        load_model(model)


def test_the_option_takes_unsigned_models_for_one_command(
    model: Path, trusting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_series(tmp_path / "in", TINY)
    command = ["segment", str(tmp_path / "in"), "--model", str(model), "--json", "--out"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "refused")])
    assert refused.exit_code == 4
    assert json.loads(refused.stdout)["error"]["code"] == "UCSEG-E134"
    assert "ucseg --allow-unsigned" in refused.stdout
    assert not (tmp_path / "refused").exists()

    taken = CliRunner().invoke(app, ["--allow-unsigned", *command, str(tmp_path / "taken")])

    assert taken.exit_code == 0, taken.output
    assert CliRunner().invoke(app, [*command, str(tmp_path / "again")]).exit_code == 4, "only for that command"


@pytest.mark.parametrize(
    ("password", "given", "message"),
    [("", None, ""), ("secret", "secret", ""), ("secret", None, "no private key"), ("secret", "x", "no private key")],
)
def test_keys_may_be_encrypted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str, given: str | None, message: str
) -> None:
    key = write_key(tmp_path, "site", password)
    if given is not None:
        monkeypatch.setenv("UCSEG_KEY_PASSWORD", given)
    result = sign(model, key)
    assert (result.exit_code == 0) == (not message)
    assert message in result.output
    assert (model / SIGNATURE_NAME).exists() == (not message)


def test_a_signature_is_not_replaced_unasked(model: Path, tmp_path: Path) -> None:
    key = write_key(tmp_path, "site")
    assert sign(model, key).exit_code == 0
    before = (model / SIGNATURE_NAME).read_bytes()
    assert sign(model, write_key(tmp_path, "other")).exit_code == 6
    assert (model / SIGNATURE_NAME).read_bytes() == before
    assert sign(model, tmp_path / "missing.pem", "--overwrite").exit_code == 3
    assert (model / SIGNATURE_NAME).read_bytes() == before
