"""Where an archive is, as it is written on the command line."""

from __future__ import annotations

import pytest

from ucseg_runtime.pacs.access import access_from_texts
from ucseg_runtime.pacs.addresses import DicomNode, WebArchive, WebResource, archive_address, web_resource


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orthanc@host:4242", DicomNode("orthanc", "host", 4242)),
        ("MY PACS@10.1.2.3:104", DicomNode("MY PACS", "10.1.2.3", 104)),
        ("PACS@[fe80::1]:104", DicomNode("PACS", "fe80::1", 104)),
        ("dicomweb+https://host/dicom-web/", WebArchive("https://host/dicom-web")),
        ("dicomweb+http://127.0.0.1:8042/dicom-web", WebArchive("http://127.0.0.1:8042/dicom-web")),
    ],
)
def test_address_is_understood_and_written_as_it_was(text: str, expected: object) -> None:
    found = archive_address(text)

    assert found == expected
    assert archive_address(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "orthanc",
        "orthanc@host",
        "@host:104",
        "seventeenletters1@host:104",
        "back\\slash@host:104",
        "orthanc@host:70000",
        "https://host/dicom-web",
        "dicomweb+ftp://host/dicom-web",
        "dicomweb+https:///dicom-web",
        "dicomweb+https://host/dicom-web?key=1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|AE title"):
        archive_address(text)


def test_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="archive-basic-file") as refused:
        archive_address("dicomweb+https://user:secret@host/dicom-web")
    assert "secret" not in str(refused.value)


def test_series_and_study_of_a_url_are_found() -> None:
    url = "dicomweb+https://host/dicom-web/studies/1.2.3/series/4.5"
    archive = WebArchive("https://host/dicom-web")

    assert web_resource(url) == WebResource(archive, "1.2.3", "4.5")
    assert web_resource("dicomweb+https://host/dicom-web/studies/1.2.3/") == WebResource(archive, "1.2.3")


@pytest.mark.parametrize("path", ["", "/studies", "/studies/x", "/studies/1.2/series/../1", f"/studies/{'1' * 65}"])
def test_url_without_a_study_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"study|UID"):
        web_resource(f"dicomweb+https://host/dicom-web{path}")


def test_allow_list_knows_networks_and_mapped_addresses() -> None:
    access = access_from_texts(["CT1 ", "CT2"], ["10.1.0.0/16", "192.0.2.7"])

    assert access.titles == {"CT1", "CT2"}
    assert [access.allows_address(text) for text in ("10.1.9.9", "::ffff:192.0.2.7", "192.0.2.8", "::1")] == [
        True,
        True,
        False,
        False,
    ]
    assert access_from_texts([], []).allows_address("203.0.113.1"), "an empty list allows everybody"
