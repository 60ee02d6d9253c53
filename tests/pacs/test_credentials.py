"""Credentials come from files or the environment, and never leave in the open."""

from __future__ import annotations

from pathlib import Path

import pytest

from ucseg_runtime.errors import ArchiveRefusedError
from ucseg_runtime.pacs.addresses import WebArchive
from ucseg_runtime.pacs.credentials import BearerToken, CredentialFiles, NameAndPassword, credentials_for

ARCHIVE = WebArchive("https://host/dicom-web")
EVERYTHING = {"UCSEG_DICOMWEB_TOKEN": "from-env", "UCSEG_DICOMWEB_USER": "me", "UCSEG_DICOMWEB_PASSWORD": "pass"}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_files_go_before_the_environment_and_tokens_before_names(tmp_path: Path) -> None:
    token, basic = written(tmp_path / "token", "abc\n"), written(tmp_path / "basic", "me:with:colon\n")

    assert credentials_for(ARCHIVE, CredentialFiles(token=token), EVERYTHING) == BearerToken("abc")
    assert credentials_for(ARCHIVE, CredentialFiles(basic=basic), EVERYTHING) == NameAndPassword("me", "with:colon")
    assert credentials_for(ARCHIVE, CredentialFiles(), EVERYTHING) == BearerToken("from-env")
    assert credentials_for(ARCHIVE, CredentialFiles(), {"UCSEG_DICOMWEB_USER": "me"}) == NameAndPassword("me", "")
    assert credentials_for(ARCHIVE, CredentialFiles(), {}) is None


def test_file_is_read_anew_each_time(tmp_path: Path) -> None:
    files = CredentialFiles(token=written(tmp_path / "token", "first"))
    credentials_for(ARCHIVE, files, {})
    written(tmp_path / "token", "second")

    assert credentials_for(ARCHIVE, files, {}) == BearerToken("second")


def test_nothing_goes_unencrypted_to_another_machine() -> None:
    with pytest.raises(ArchiveRefusedError, match="unencrypted") as refused:
        credentials_for(WebArchive("http://host/dicom-web"), CredentialFiles(), EVERYTHING)
    assert "from-env" not in str(refused.value)
    assert credentials_for(WebArchive("http://127.0.0.1:8042/dicom-web"), CredentialFiles(), EVERYTHING)


@pytest.mark.parametrize("text", ["", "first-secret\nsecond-secret"])
def test_file_that_holds_no_single_line_is_refused_without_repeating_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArchiveRefusedError, match="one line") as refused:
        credentials_for(ARCHIVE, CredentialFiles(token=written(tmp_path / "token", text)), {})
    assert "secret" not in str(refused.value)


def test_missing_file_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefusedError, match="cannot be read") as refused:
        credentials_for(ARCHIVE, CredentialFiles(token=tmp_path / "nowhere"), {})
    assert str(tmp_path) not in str(refused.value)


def test_secrets_are_not_part_of_what_is_printed() -> None:
    assert "abc" not in repr(BearerToken("abc")) + repr(NameAndPassword("abc", "abc"))
