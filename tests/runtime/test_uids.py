"""Identity of outputs: the same inputs give the same UIDs and the same bytes, other inputs give others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.phantoms import CtPhantom
from tests.results import DICOM_KINDS, IDENTITY, segmentation_of, sources_of, write_objects
from ucseg_runtime.dicom.uids import UidSource, derived_uid
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.site_secret import DEFAULT_SITE_SECRET, SITE_SECRET_VARIABLE, site_secret

SOURCES = ("1.2.3.1", "1.2.3.2", "1.2.3.10")
SECRET = b"site"

OTHER_RUNS = {
    "model name": replace(IDENTITY, model_name="other"),
    "model version": replace(IDENTITY, model_version="1.2.4"),
    "model digest": replace(IDENTITY, model_digest="ba" * 32),
    "engine": replace(IDENTITY, engine=replace(IDENTITY.engine, name="onnxruntime")),
    "engine version": replace(IDENTITY, engine=replace(IDENTITY.engine, version="2026.4.2")),
    "precision": replace(IDENTITY, engine=replace(IDENTITY.engine, precision="f32")),
    "device": replace(IDENTITY, engine=replace(IDENTITY.engine, device="GPU")),
    "accuracy gate": replace(IDENTITY, engine=replace(IDENTITY.engine, proven=False)),
    "settings": replace(IDENTITY, settings_digest="dc" * 32),
    "ucseg version": replace(IDENTITY, ucseg_version="0.2.0"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    phantom = CtPhantom()
    return write_objects(tmp_path_factory.mktemp("first"), segmentation_of(phantom), sources_of(phantom))


def all_uids(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR == "UI":
            yield from [element.value] if isinstance(element.value, str) else element.value


def test_known_answer() -> None:
    """Changing how UIDs are derived makes duplicates of everything in every archive."""
    uid = UidSource(SOURCES, IDENTITY, SECRET).of_output("segmentation binary instance")

    assert uid == "2.25.29483166431600695264999703891717461772"


def test_order_of_the_sources_does_not_matter() -> None:
    there, back = UidSource(SOURCES, IDENTITY, SECRET), UidSource(SOURCES[::-1], IDENTITY, SECRET)

    assert there.of_output("report instance") == back.of_output("report instance")


def test_uids_are_valid_and_carry_a_uuid_of_the_standard_layout() -> None:
    for number in range(100):
        uid = derived_uid(SECRET, number)
        value = int(uid.removeprefix("2.25."))
        assert uid.is_valid
        assert len(uid) <= 64
        assert (value >> 76) & 0xF == 5
        assert (value >> 62) & 0x3 == 2


@pytest.mark.parametrize("other", OTHER_RUNS.values(), ids=OTHER_RUNS.keys())
def test_every_part_of_the_identity_changes_the_uid(other: RunIdentity) -> None:
    first, second = UidSource(SOURCES, IDENTITY, SECRET), UidSource(SOURCES, other, SECRET)

    assert first.of_output("report instance") != second.of_output("report instance")


def test_sources_role_and_secret_change_the_uid() -> None:
    uids = {
        UidSource(SOURCES, IDENTITY, SECRET).of_output("a"),
        UidSource(SOURCES, IDENTITY, SECRET).of_output("b"),
        UidSource(SOURCES[1:], IDENTITY, SECRET).of_output("a"),
        UidSource(SOURCES, IDENTITY, b"other site").of_output("a"),
        UidSource(("1.2.3.11.2.3.2", "1.2.3.10"), IDENTITY, SECRET).of_output("a"),
        UidSource(SOURCES, IDENTITY, SECRET).of_segment(1),
        UidSource(SOURCES, IDENTITY, SECRET).of_segment(2),
    }

    assert len(uids) == 7


def test_the_device_is_the_same_for_every_patient() -> None:
    one, other = UidSource(SOURCES, IDENTITY, SECRET), UidSource(("9.9",), IDENTITY, SECRET)

    assert one.of_device() == other.of_device()


def test_secret_comes_from_the_environment_or_is_the_published_default() -> None:
    assert site_secret({SITE_SECRET_VARIABLE: "ours"}) == b"ours"
    assert site_secret({}) == site_secret({SITE_SECRET_VARIABLE: ""}) == DEFAULT_SITE_SECRET.encode()


def test_secret_of_the_process_changes_the_uids_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITE_SECRET_VARIABLE, "ours")
    ours = UidSource(SOURCES, IDENTITY)

    assert ours.of_output("a") == UidSource(SOURCES, IDENTITY, b"ours").of_output("a")
    assert ours.of_output("a") != UidSource(SOURCES, IDENTITY, DEFAULT_SITE_SECRET.encode()).of_output("a")
    assert "ours" not in repr(ours)


def test_writing_again_later_gives_the_same_bytes(tmp_path: Path, written: dict[str, Path]) -> None:
    phantom = CtPhantom()
    time.sleep(1.1)  # DICOM times have fractions of a second, but some libraries write whole ones

    again = write_objects(tmp_path / "again", segmentation_of(phantom), sources_of(phantom))

    for kind in DICOM_KINDS:
        assert again[kind].read_bytes() == written[kind].read_bytes(), kind


def test_another_model_gives_other_objects_about_the_same_images(tmp_path: Path, written: dict[str, Path]) -> None:
    phantom = CtPhantom()
    other = write_objects(tmp_path, segmentation_of(phantom), sources_of(phantom), OTHER_RUNS["model digest"])

    for kind in DICOM_KINDS:
        first, second = pydicom.dcmread(written[kind]), pydicom.dcmread(other[kind])
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert first.SeriesInstanceUID != second.SeriesInstanceUID
        assert first.StudyInstanceUID == second.StudyInstanceUID == phantom.study_uid


def test_no_two_objects_of_a_run_share_an_instance_or_a_series(written: dict[str, Path]) -> None:
    datasets = [pydicom.dcmread(path) for path in written.values()]

    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(DICOM_KINDS)
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == len(DICOM_KINDS)


def test_every_uid_in_an_object_is_of_the_standard_of_the_source_or_derived(written: dict[str, Path]) -> None:
    for path in written.values():
        for uid in all_uids(pydicom.dcmread(path)):
            assert uid.startswith(("2.25.", "1.2.840.10008.")), uid
