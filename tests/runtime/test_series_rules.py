"""Choosing a series by rules: what each rule looks at, that all must hold, and that every verdict is explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from typer.testing import CliRunner

from tests.bad_inputs import setting
from tests.model_phantom import ModelPhantom, manifest_fields
from tests.phantoms import PHI_CANARIES, CtPhantom, write_ct_series
from ucseg_runtime.backends.graphs import GRAPHS
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InputOptions
from ucseg_runtime.dicom.instances import Series
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import scan
from ucseg_runtime.dicom.traits import traits_of
from ucseg_runtime.errors import ManifestError, SeriesSelectionError
from ucseg_runtime.manifest import MANIFEST_NAME, Manifest, manifest_from_json
from ucseg_runtime.series_rules import SeriesTraits, plane_of, rules_from_texts

SMALL = CtPhantom(shape=(4, 12, 10))
TRAITS = SeriesTraits("CT", "CHEST", ("Thorax [lung] 1.5 B60f", "chest routine"), "axial", 120, 1.5, True)


def fits(rule: str, traits: SeriesTraits = TRAITS) -> bool:
    (parsed,) = rules_from_texts([rule], [], "user")
    (excluding,) = rules_from_texts([], [rule], "user")
    chosen = parsed.judge(traits).passed
    assert excluding.judge(traits).passed is not chosen
    return chosen


def only_series(folder: Path) -> Series:
    (series,) = scan(folder).series
    return series


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path / "model")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("modality=CT", True),
        ("modality=mr, ct", True),
        ("modality=MR", False),
        ("body-part=chest", True),
        ("body-part=ABDOMEN,HEAD", False),
        ("description=LUNG", True),
        ("description=lung*", False),
        ("description=thorax*b??f", True),
        ("description=[lung]", True),
        ("description=[a-z]", False),
        ("description=head,routine", True),
        ("plane=axial", True),
        ("plane=coronal,sagittal", False),
        ("slices=120", True),
        ("slices=40..", True),
        ("slices=..119", False),
        ("thickness=0.5..3", True),
        ("thickness=..1.5", True),
        ("thickness=2..", False),
        ("contrast=with", True),
        ("contrast=without", False),
    ],
)
def test_rule_looks_at_what_it_names(rule: str, expected: bool) -> None:
    assert fits(rule) is expected


@pytest.mark.parametrize("rule", ["body-part=chest", "description=*", "plane=axial", "thickness=0..99"])
def test_what_a_series_does_not_say_fits_no_rule(rule: str) -> None:
    assert not fits(rule, SeriesTraits("CT", "", (), "", 10, float("nan"), False))


@pytest.mark.parametrize(
    "rule",
    ["plane", "plane=", "plane=diagonal", "colour=red", "slices=many", "thickness=3..1", "contrast=maybe", "=x", ""],
)
def test_rule_without_meaning_is_refused_before_anything_is_read(rule: str) -> None:
    with pytest.raises(ValueError, match="rule"):
        rules_from_texts([rule], [], "user")


@pytest.mark.parametrize(
    ("normal", "plane"),
    [
        ((0, 0, 1), "axial"),
        ((0, 0.4, -0.9), "axial"),
        ((0, -2, 0), "coronal"),
        ((1, 0.1, 0.1), "sagittal"),
        ((1, 1, 1), "oblique"),
        ((0, 1, 1), "oblique"),
    ],
)
def test_plane_follows_the_normal_and_a_tilted_head_scan_is_axial(
    normal: tuple[float, float, float], plane: str
) -> None:
    assert plane_of(normal) == plane


def test_traits_come_from_all_files(tmp_path: Path) -> None:
    def describe(index: int, dataset: FileDataset) -> None:
        change = setting(
            SeriesDescription="canary lung" if index else "canary bone",
            ProtocolName="canary routine",
            SliceThickness=1.0 + index,
            BodyPartExamined="" if index < 2 else "CHEST",
        )
        change(dataset)
        if index == 3:
            dataset.ContrastBolusAgent = "canary agent"

    write_ct_series(tmp_path, SMALL, edit=describe)

    traits = traits_of(only_series(tmp_path))

    assert traits.descriptions == ("canary bone", "canary lung", "canary routine")
    assert (traits.modality, traits.body_part, traits.plane) == ("CT", "CHEST", "axial")
    assert (traits.slices, traits.thickness_mm, traits.has_contrast) == (4, 4.0, True)
    assert "canary" not in repr(traits)
    assert "canary" not in repr(only_series(tmp_path))


@pytest.fixture
def two_kernels(tmp_path: Path) -> Path:
    """A long lung series and a short soft-tissue series of one study, with patient data in their descriptions."""
    for number, (name, shape) in enumerate((("lung", (8, 12, 10)), ("soft tissue", (6, 12, 10))), start=1):
        write_ct_series(
            tmp_path / "study" / str(number),
            replace(SMALL, series_number=number, shape=shape),
            edit=lambda _index, dataset, name=name: setting(SeriesDescription=f"Canaryname {name}")(dataset),
        )
    return tmp_path / "study"


def chosen(folder: Path, choose: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> int | None:
    wanted = InputOptions(rules=rules_from_texts(choose, exclude, "user"))
    return select_series(scan(folder), "CT", wanted).chosen.series_number


def test_rules_come_before_the_number_of_slices(two_kernels: Path) -> None:
    assert chosen(two_kernels) == 1
    assert chosen(two_kernels, choose=("description=soft",)) == 2
    assert chosen(two_kernels, exclude=("description=lung",)) == 2
    assert chosen(two_kernels, choose=("slices=..7", "plane=axial")) == 2
    assert chosen(two_kernels, choose=("plane=axial",), exclude=("contrast=with",)) == 1


def test_all_rules_must_hold_and_the_error_names_the_first_that_fails(two_kernels: Path) -> None:
    with pytest.raises(SeriesSelectionError) as caught:
        chosen(two_kernels, choose=("slices=7..", "description=soft"))

    message = str(caught.value)
    assert "'choose slices=7.. (caller)': 6 slices" in message
    assert "'choose description=… (caller)': a description that does not fit" in message
    assert "lung" not in message
    assert not [canary for canary in PHI_CANARIES if canary in message.lower()]


def test_series_that_the_caller_insists_on_must_pass_rules_too(two_kernels: Path) -> None:
    uid = replace(SMALL, series_number=2, shape=(6, 12, 10)).series_uid
    rules = rules_from_texts(["slices=7.."], [], "model")

    with pytest.raises(SeriesSelectionError, match="6 slices"):
        select_series(scan(two_kernels), "CT", InputOptions(series_uid=uid, rules=rules))


def with_rules(folder: Path, **rules: list[str]) -> Path:
    """Give the model of a folder rules."""
    path = folder / MANIFEST_NAME
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "series": rules}))
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert not [canary for canary in PHI_CANARIES if canary in result.output.lower()], result.output
    return result.exit_code, result.output


def test_rules_of_the_manifest_are_the_models_and_come_first(two_kernels: Path, model: Path) -> None:
    with_rules(model, choose=["plane=axial", "description=tissue"])

    code, output = run("inspect", two_kernels, "--model", model, "--choose", "slices=7..", "--json")

    report = json.loads(output[: output.rindex("}") + 1])
    assert code == 3
    rules = [item["rule"] for item in report["series"][0]["checks"]]
    assert rules == [
        "modality CT (model)",
        "slice images of one patient",
        "choose plane=axial (model)",
        "choose description=… (model)",
        "choose slices=7.. (caller)",
        "one straight grid",
        "complete pixels of a kind that is read",
    ]
    failed = [[item["rule"] for item in row["checks"] if not item["passed"]] for row in report["series"]]
    assert failed == [["choose description=… (model)"], ["choose slices=7.. (caller)"]]


@pytest.mark.parametrize("rule", ["plane=diagonal", "anything"])
def test_manifest_with_a_rule_without_meaning_is_refused(rule: str) -> None:
    fields = {**manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b"")), "series": {"choose": [rule]}}

    with pytest.raises(ManifestError, match="series"):
        manifest_from_json(json.dumps(fields))


def test_manifest_without_rules_reads_as_before() -> None:
    assert Manifest.model_validate(manifest_fields(ModelPhantom(), dict.fromkeys(GRAPHS, b""))).series_rules() == ()


def test_why_shows_every_check_of_every_series(two_kernels: Path, model: Path) -> None:
    write_ct_series(two_kernels / "3", replace(SMALL, series_number=3, modality="MR"), omit=(1,))

    code, output = run("inspect", two_kernels, "--model", model, "--exclude", "description=lung", "--why")

    assert code == 0
    assert "Study 1, series 1, 8 files: rejected" in output
    assert "Study 1, series 2, 6 files: used" in output
    assert output.count("exclude description=… (caller)") >= 3
    assert output.count("failed") == 4  # the lung rule; modality, class and gap of the MR series
    assert run("inspect", two_kernels, "--model", model)[1].count("passed") == 0


def test_paths_are_shown_to_those_alone_who_ask(two_kernels: Path, model: Path) -> None:
    (two_kernels / "evil\x1b[2J.txt").write_text("x")

    shown = CliRunner().invoke(app, ["inspect", str(two_kernels), "--model", str(model), "--show-paths"])
    as_json = CliRunner().invoke(app, ["inspect", str(two_kernels), "--model", str(model), "--show-paths", "--json"])

    assert "2\t1/canaryfile_0000.dcm" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "evil\\x1b[2J.txt" in shown.stdout
    assert json.loads(as_json.stdout)["files"][1] == "1/canaryfile_0000.dcm"
    run("inspect", two_kernels, "--model", model, "--why", "--json")  # asserts that no name is in it


@pytest.mark.parametrize("command", ["segment", "inspect", "plan"])
def test_rule_that_cannot_be_read_is_a_usage_error(
    two_kernels: Path, model: Path, tmp_path: Path, command: str
) -> None:
    out = ["--out", tmp_path / "out"] if command == "segment" else []

    code, output = run(command, two_kernels, "--model", model, *out, "--choose", "plane=diagonal")

    assert code == 2
    assert "axial, coronal, sagittal, oblique" in " ".join(output.replace("│", " ").split())


def test_segment_takes_the_series_that_rules_leave(two_kernels: Path, model: Path, tmp_path: Path) -> None:
    arguments = ["segment", two_kernels, "--out", tmp_path / "out", "--model", model, "--no-gate", "--json"]

    code, output = run(*arguments, "--choose", "description=soft")

    assert code == 0
    report = json.loads(output[: output.rindex("}") + 1])
    assert report["series_uid"] == replace(SMALL, series_number=2).series_uid
    assert "a description that does not fit" in report["rejected"][0]["reason"]
