"""NIfTI images as input: the right place whatever the axes, and results on the image's own grid, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from typer.testing import CliRunner

from tests.model_phantom import ModelPhantom
from tests.nifti_images import dims, fields, image_bytes, write_image
from tests.phantoms import OBLIQUE, PHI_CANARIES, CtPhantom, all_orientations, write_ct_series
from tests.proof_phantom import proven
from ucseg_runtime.cli.app import app
from ucseg_runtime.errors import BackendUnavailableError, InputError
from ucseg_runtime.nifti_input import is_nifti, nifti_image, read_image
from ucseg_runtime.volume import Volume

PHANTOM = CtPhantom(shape=(20, 40, 48))
PLACING = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
PLACING_VECTORS = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


def volume_of(path: Path) -> Volume:
    return read_image(nifti_image(path, "CT"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proven(ModelPhantom(tile_shape=(16, 32, 32)).write(tmp_path_factory.mktemp("model") / "phantom"))


def segment(source: Path, out: Path, model: Path, *options: str) -> dict[str, object]:
    result = CliRunner().invoke(
        app, ["segment", str(source), "--out", str(out), "--model", str(model), "--json", *options]
    )
    assert result.exit_code == 0, result.output
    assert not [canary for canary in PHI_CANARIES if canary in result.output.lower()]
    document: dict[str, object] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize(
    "phantom",
    [*all_orientations(), CtPhantom(orientation=OBLIQUE)],
    ids=lambda p: f"{p.orientation}-{'flipped' if p.flip else 'straight'}",
)
def test_marked_voxels_lie_where_nibabel_puts_them(tmp_path: Path, phantom: CtPhantom) -> None:
    path = write_image(tmp_path / "image.nii.gz", phantom)
    image = nibabel.load(path)

    volume = volume_of(path)

    voxels = np.asarray(image.dataobj)
    for value in phantom.markers.values():
        (file_index,) = np.argwhere(voxels == value)
        right, front, up = nibabel.affines.apply_affine(image.affine, file_index)
        (index,) = np.argwhere(volume.voxels == value)
        np.testing.assert_allclose(volume.geometry.lps_from_index(index), (-right, -front, up), atol=1e-3)


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 0, 2), (0, 2, 1)], ids=str)
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)], ids=str)
def test_axes_of_the_file_may_come_in_any_order_and_direction(
    tmp_path: Path, axes: tuple[int, int, int], flipped: tuple[int, ...]
) -> None:
    """An image that nibabel turns, which leaves every voxel at its place."""
    image = nibabel.load(write_image(tmp_path / "image.nii.gz", PHANTOM))
    signs = [-1 if axis in flipped else 1 for axis in range(3)]
    turned = image.as_reoriented(np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")

    volume = volume_of(tmp_path / "turned.nii.gz")

    for index, value in PHANTOM.markers.items():
        (found,) = np.argwhere(volume.voxels == value)
        np.testing.assert_allclose(
            volume.geometry.lps_from_index(found), PHANTOM.geometry.lps_from_index(index), atol=1e-3
        )


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "IMAGE.NII.GZ", "without-suffix"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_versions_byte_orders_and_names_give_the_same_volume(
    tmp_path: Path, name: str, version: int, endianness: str
) -> None:
    path = write_image(tmp_path / name, version=version, endianness=endianness)

    assert is_nifti(path)
    volume = volume_of(path)

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, CtPhantom().hu)
    assert volume.geometry.matches(CtPhantom().geometry)


@pytest.mark.parametrize("stored", ["i2", "i4", "f4", "f8"])
def test_values_are_scaled_as_the_header_says(tmp_path: Path, stored: str) -> None:
    voxels = ((CtPhantom().hu + 1024) / 2).astype(stored)

    volume = volume_of(
        write_image(tmp_path / "image.nii.gz", voxels=voxels, edit=fields(scl_slope=2.0, scl_inter=-1024.0))
    )

    np.testing.assert_array_equal(volume.voxels, voxels.astype(np.float64) * 2 - 1024)


@pytest.mark.parametrize("kind", [np.int16, np.float64])
def test_scaled_values_that_no_float32_holds_are_refused(tmp_path: Path, kind: type[np.generic]) -> None:
    voxels = np.full((3, 4, 5), -1000, dtype=kind)
    path = write_image(tmp_path / "image.nii.gz", voxels=voxels, edit=fields(scl_slope=3.5e35, scl_inter=0.0))

    with pytest.raises(InputError, match="too large for 32 bits"):
        read_image(nifti_image(path, "CT"))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_slope_of_zero_or_nan_means_none(tmp_path: Path, slope: float) -> None:
    path = write_image(tmp_path / "image.nii.gz", edit=fields(scl_slope=slope, scl_inter=slope))

    np.testing.assert_array_equal(volume_of(path).voxels, CtPhantom().hu)


@pytest.mark.parametrize("code", ["qform_code", "sform_code"])
def test_one_form_is_enough(tmp_path: Path, code: str) -> None:
    path = write_image(tmp_path / "image.nii.gz", CtPhantom(orientation=OBLIQUE), edit=fields(**{code: 0}))

    assert volume_of(path).geometry.matches(CtPhantom(orientation=OBLIQUE).geometry, tolerance_mm=0.01)


def test_trailing_dimensions_of_one_are_no_further_volumes(tmp_path: Path) -> None:
    z, y, x = CtPhantom().shape

    assert volume_of(write_image(tmp_path / "image.nii.gz", edit=dims(x, y, z, 1, 1))).voxels.shape == (z, y, x)


def test_header_bomb_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.nii.gz", edit=dims(20_000, 20_000, 20_000))

    with pytest.raises(InputError, match="8000000000000 voxels"):
        nifti_image(path, "CT")


def test_image_that_changes_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.nii.gz")
    image = nifti_image(path, "CT")
    write_image(path, replace(CtPhantom(), origin_mm=(0.0, 0.0, 0.0)))

    with pytest.raises(InputError, match="changed since") as caught:
        read_image(image)

    assert caught.value.code == "UCSEG-E124"


def test_dicom_files_folders_and_texts_are_no_nifti(tmp_path: Path) -> None:
    dicom = write_ct_series(tmp_path / "folder.nii.gz", omit=range(1, 10))[0]
    (tmp_path / "text.txt").write_text("n+1")

    assert not is_nifti(dicom)
    assert not is_nifti(dicom.rename(tmp_path / "image.nii"))
    assert not is_nifti(tmp_path / "folder.nii.gz")
    assert not is_nifti(tmp_path / "text.txt")
    assert not is_nifti(tmp_path / "missing.nii.gz")


def test_missing_nibabel_is_named_with_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "image.nii.gz")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'ucseg\[nifti\]'"):
        nifti_image(path, "CT")


@pytest.mark.parametrize("version", [1, 2])
def test_results_lie_on_the_grid_of_the_image_bit_for_bit(tmp_path: Path, model: Path, version: int) -> None:
    phantom = replace(PHANTOM, orientation=OBLIQUE, spacing_mm=(2.1, 1.3, 1.7))
    path = write_image(
        tmp_path / "canaryname.nii", phantom, version=version, edit=fields(sform_code=2, descrip=b"canary")
    )

    document = segment(path, tmp_path / "out", model)

    assert document["files"] == ["montage.png", "labels.nii.gz", "uncertainty.nii.gz", "record.json"]
    kind = Nifti1Header if version == 1 else Nifti2Header
    source = kind(path.read_bytes()[: kind().sizeof_hdr], check=False)
    for name in ("labels.nii.gz", "uncertainty.nii.gz"):
        result = nibabel.load(tmp_path / "out" / name)
        assert type(result.header) is (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).header_class
        assert result.shape == (48, 40, 20)
        for field in PLACING_VECTORS:
            assert result.header[field].tobytes() == source[field].tobytes(), field
        for field in PLACING[1:]:
            assert result.header[field].tobytes() == source[field].tobytes(), field
        assert result.header["pixdim"][:4].tobytes() == source["pixdim"][:4].tobytes()
        assert b"canary" not in (tmp_path / "out" / name).read_bytes()


def test_image_and_its_dicom_series_give_the_same_labels(tmp_path: Path, model: Path) -> None:
    write_ct_series(tmp_path / "study", PHANTOM)

    from_series = segment(tmp_path / "study", tmp_path / "a", model, "--nifti")
    from_image = segment(write_image(tmp_path / "image.nii.gz", PHANTOM), tmp_path / "b", model)

    assert from_image["measurements"] == from_series["measurements"]
    for name in ("labels.nii.gz", "uncertainty.nii.gz"):
        one, other = (np.asarray(nibabel.load(tmp_path / out / name).dataobj) for out in "ab")
        np.testing.assert_array_equal(one, other)


def test_segmenting_again_gives_the_same_bytes_and_a_record_without_names(tmp_path: Path, model: Path) -> None:
    for name in ("canaryname.nii.gz", "other.nii.gz"):
        segment(write_image(tmp_path / name, PHANTOM), tmp_path / name[:5], model)

    one, other = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("canar", "other"))

    assert one == other
    record = json.loads(one["record.json"])
    assert len(record["image_sha256"]) == 64
    assert "no DICOM objects" in " ".join(record["notes"])


def test_images_and_series_can_be_given_together(tmp_path: Path, model: Path) -> None:
    write_ct_series(tmp_path / "study", PHANTOM)
    image = write_image(tmp_path / "image.nii.gz", PHANTOM)
    arguments = ["segment", str(tmp_path / "study"), str(image), "--out", str(tmp_path / "out")]

    result = CliRunner().invoke(app, [*arguments, "--model", str(model), "--json"])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "1" / "segmentation.dcm").exists()
    assert (tmp_path / "out" / "2" / "labels.nii.gz").exists()
    assert not (tmp_path / "out" / "2" / "segmentation.dcm").exists()


@pytest.mark.parametrize("option", [("--series", "1.2.3"), ("--choose", "plane=axial"), ("--allow-gaps", "1")], ids=str)
def test_wishes_for_a_series_are_refused_for_an_image(tmp_path: Path, model: Path, option: tuple[str, str]) -> None:
    path = write_image(tmp_path / "image.nii.gz", PHANTOM)

    result = CliRunner().invoke(
        app, ["segment", str(path), "--out", str(tmp_path / "o"), "--model", str(model), *option]
    )

    assert result.exit_code == 3
    assert "no series to choose from" in result.stderr


def test_inspect_and_plan_know_images(tmp_path: Path, model: Path) -> None:
    path = str(write_image(tmp_path / "image.nii.gz", PHANTOM))

    inspected = CliRunner().invoke(app, ["inspect", path, "--model", str(model), "--json"])
    planned = CliRunner().invoke(app, ["plan", path, "--model", str(model), "--json"])

    assert json.loads(inspected.stdout)["shape"] == list(PHANTOM.shape)
    assert "20 x 40 x 48" in CliRunner().invoke(app, ["inspect", path, "--model", str(model)]).stdout
    assert json.loads(planned.stdout)["source_shape"] == list(PHANTOM.shape)
    broken = image_bytes(lambda b: b[:200], "broken.nii")(tmp_path)
    assert CliRunner().invoke(app, ["inspect", str(broken), "--model", str(model)]).exit_code == 3


@pytest.mark.parametrize("units", [4, 5, 6, 7, 255])
def test_unknown_unit_of_length_is_refused(tmp_path: Path, units: int) -> None:
    path = write_image(tmp_path / "image.nii.gz", edit=fields(xyzt_units=units))

    with pytest.raises(InputError, match="unit"):
        nifti_image(path, "CT")


@pytest.mark.parametrize("units", [0, 2, 2 + 8])
def test_unit_that_is_missing_or_mm_is_read(tmp_path: Path, units: int) -> None:
    assert volume_of(write_image(tmp_path / "image.nii.gz", edit=fields(xyzt_units=units))).voxels.any()


def test_negative_code_of_a_form_means_none(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.nii.gz", edit=fields(qform_code=-3, sform_code=0))

    with pytest.raises(InputError, match="neither a qform nor an sform"):
        nifti_image(path, "CT")


@pytest.mark.parametrize("place", [256, 268, 280], ids=["quaternion", "qoffset_x", "srow_x"])
def test_signalling_nan_in_a_form_is_refused(tmp_path: Path, place: int) -> None:
    content = bytearray(write_image(tmp_path / "image.nii").read_bytes())
    content[place : place + 4] = 0x7FA00001.to_bytes(4, "little")
    (tmp_path / "image.nii").write_bytes(bytes(content))

    with pytest.raises(InputError, match="rotation|cannot be placed"):
        nifti_image(tmp_path / "image.nii", "CT")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_headers_give_input_errors_or_a_volume_of_the_declared_shape(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Anything else that escapes is a defect."""
    folder = tmp_path_factory.mktemp("mutant")
    content = bytearray(write_image(folder / "image.nii", CtPhantom(shape=(3, 12, 10))).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 351))
        content[place] = data.draw(st.integers(0, 255))
    (folder / "image.nii").write_bytes(bytes(content))

    try:
        image = nifti_image(folder / "image.nii", "CT")
        volume = read_image(image)
    except InputError:
        return

    assert volume.voxels.shape == image.geometry.shape


def test_inspect_refuses_wishes_for_a_series_of_an_image(tmp_path: Path, model: Path) -> None:
    path = str(write_image(tmp_path / "image.nii.gz"))

    assert CliRunner().invoke(app, ["inspect", path, "--model", str(model), "--choose", "plane=axial"]).exit_code == 3


@pytest.mark.parametrize("option", ["--rtstruct", "--preview"])
def test_objects_that_need_a_study_are_refused_for_an_image(tmp_path: Path, model: Path, option: str) -> None:
    write_image(tmp_path / "image.nii.gz", PHANTOM)

    result = CliRunner().invoke(
        app, ["segment", str(tmp_path / "image.nii.gz"), "--out", str(tmp_path / "out"), "--model", str(model), option]
    )

    assert result.exit_code == 3, result.output
    assert option.removeprefix("--") in result.stderr
    assert not (tmp_path / "out").exists()
