"""Pictures and clips go through the whole path, DICOM to DICOM, and the object comes back where it was."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import uid
from typer.testing import CliRunner

from tests.clip_phantom import ClipPhantom, colour_model, grey_model
from tests.results import conformance
from ucseg_runtime.cli.app import app
from ucseg_runtime.config import InferenceOptions, InputOptions, OutputOptions, SegEncoding
from ucseg_runtime.errors import InputError, UcsegError
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.series_pipeline import segment_series

OPTIONS = InferenceOptions(gate=False, engine="onnxruntime")

KINDS = {
    "rgb": ClipPhantom(),
    "rgb by plane": ClipPhantom(by_plane=True),
    "ybr": ClipPhantom(photometric="YBR_FULL"),
    "ybr 422": ClipPhantom(photometric="YBR_FULL_422"),
    "palette": ClipPhantom(photometric="PALETTE COLOR"),
    "jpeg ybr": ClipPhantom(photometric="YBR_FULL_422", transfer_syntax=uid.JPEGBaseline8Bit),
    "jpeg rgb": ClipPhantom(transfer_syntax=uid.JPEGBaseline8Bit),
    "jpeg 2000 rct": ClipPhantom(photometric="YBR_RCT", transfer_syntax=uid.JPEG2000Lossless),
    "jpeg 2000 ict": ClipPhantom(photometric="YBR_ICT", transfer_syntax=uid.JPEG2000),
    "rle": ClipPhantom(transfer_syntax=uid.RLELossless),
    "still": ClipPhantom(frames=1),
    "ultrasound rgb": ClipPhantom(modality="US"),
    "photograph": ClipPhantom(frames=1, modality="XC"),
    "secondary capture": ClipPhantom(modality="OT"),
    "ultrasound grey": ClipPhantom(modality="US", photometric="MONOCHROME2"),
    "ultrasound grey inverted": ClipPhantom(modality="US", photometric="MONOCHROME1"),
    "ultrasound grey still": ClipPhantom(modality="US", photometric="MONOCHROME2", frames=1),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Model]:
    folder = tmp_path_factory.mktemp("models")
    made = {(modality, 3): colour_model(modality) for modality in ("US", "ES", "XC", "OT")}
    made["US", 1] = grey_model("US")
    return {key: load_model(model.write(folder / f"{key[0]}{key[1]}")) for key, model in made.items()}


def segment(source: Path, out: Path, model: Model, outputs: OutputOptions | None = None) -> pydicom.FileDataset:
    segment_series(source, out, model, OPTIONS, outputs or OutputOptions())
    return pydicom.dcmread(out / "segmentation.dcm")


def planes(seg: pydicom.FileDataset) -> dict[tuple[str, int], npt.NDArray[np.uint8]]:
    """Frames of a segmentation by the file and frame that they refer to, 0 for files of one frame."""
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found = {}
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        found[str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 0))] = plane
    return found


def assert_shows(plane: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> None:
    found = plane > 0
    assert found.shape == mask.shape
    overlap = 2 * np.count_nonzero(found & mask) / (np.count_nonzero(found) + np.count_nonzero(mask))
    assert overlap > 0.88, "planes are coarser than frames, and some frames have half of their colours"
    centre, expected = np.argwhere(found).mean(axis=0), np.argwhere(mask).mean(axis=0)
    assert np.abs(centre - expected).max() < 1.0


@pytest.mark.parametrize("name", KINDS)
def test_object_comes_back_in_its_frame_and_place(
    name: str, models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    clip = KINDS[name]
    clip.write(tmp_path / "in" / "clip.dcm")

    seg = segment(tmp_path / "in", tmp_path / "out", models[clip.modality, 1 if clip.grey else 3])

    found = planes(seg)
    assert set(found) == {(clip.sop_uid, frame + 1 if clip.frames > 1 else 0) for frame in range(clip.frames)}
    for (_, frame), plane in found.items():
        assert_shows(plane, clip.mask(max(frame - 1, 0)))
    order = [group.FrameContentSequence[0].TemporalPositionIndex for group in seg.PerFrameFunctionalGroupsSequence]
    assert order == list(range(1, clip.frames + 1)), "players show frames in the order of the object"
    assert not {"FrameOfReferenceUID", "PositionReferenceIndicator"} & {element.keyword for element in seg}
    assert conformance(tmp_path / "out" / "segmentation.dcm").errors == {}


def test_label_map_object_is_valid_and_equal(models: dict[tuple[str, int], Model], tmp_path: Path) -> None:
    clip = ClipPhantom()
    clip.write(tmp_path / "in" / "clip.dcm")
    binary = planes(segment(tmp_path / "in", tmp_path / "binary", models["ES", 3]))
    seg = segment(tmp_path / "in", tmp_path / "labelmap", models["ES", 3], OutputOptions(SegEncoding("labelmap")))
    assert seg.SegmentationType == "LABELMAP"
    assert seg.file_meta.TransferSyntaxUID == uid.RLELossless
    found = planes(seg)
    assert set(found) == set(binary)
    assert all(np.array_equal(found[key], binary[key]) for key in binary)
    assert conformance(tmp_path / "labelmap" / "segmentation.dcm").errors == {}


def test_several_files_are_one_series_by_instance_number(models: dict[tuple[str, int], Model], tmp_path: Path) -> None:
    """The later file is called so that it comes first in the folder."""
    still, clip = ClipPhantom(frames=1, instance=1), ClipPhantom(frames=3, instance=2)
    clip.write(tmp_path / "in" / "a.dcm", first=1)
    still.write(tmp_path / "in" / "b.dcm")

    found = planes(segment(tmp_path / "in", tmp_path / "out", models["ES", 3]))

    assert_shows(found[still.sop_uid, 0], still.mask(0))
    for frame in range(3):
        assert_shows(found[clip.sop_uid, frame + 1], clip.mask(frame + 1))
    with (tmp_path / "out" / "timeline.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["frame_of_file"]) for row in rows] == [("1", "1"), ("2", "1"), ("2", "2"), ("2", "3")]
    assert [row["time_s"] for row in rows] == ["", "0.0", "0.04", "0.08"]


def test_time_line_counts_what_the_segmentation_shows(models: dict[tuple[str, int], Model], tmp_path: Path) -> None:
    def calibrate(dataset: pydicom.FileDataset) -> None:
        region = pydicom.Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
        region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 69, 49
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.02
        dataset.SequenceOfUltrasoundRegions = [region]

    clip = ClipPhantom(modality="US", photometric="MONOCHROME2")
    clip.write(tmp_path / "in" / "clip.dcm", edit=calibrate)
    found = planes(segment(tmp_path / "in", tmp_path / "out", models["US", 1]))
    with (tmp_path / "out" / "timeline.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == clip.frames
    for number, row in enumerate(rows, start=1):
        pixels = np.count_nonzero(found[clip.sop_uid, number])
        assert int(row["class 1 area_px"]) == pixels
        assert float(row["class 1 area_mm2"]) == pytest.approx(pixels * 0.5 * 0.2, rel=1e-5)
        assert 0 < float(row["mean_uncertainty"]) <= float(row["uncertainty_p95"]) <= 1
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["timeline"]["class 1 area_px"] == [int(row["class 1 area_px"]) for row in rows]
    assert record["measurements"][0]["frames"] == clip.frames
    assert set(record["outputs"]) == {"segmentation.dcm", "montage.png", "timeline.csv"}


def test_equal_runs_write_equal_files_however_many_frames_go_together(
    models: dict[tuple[str, int], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ClipPhantom(frames=7).write(tmp_path / "in" / "clip.dcm")
    segment(tmp_path / "in", tmp_path / "together", models["ES", 3])
    monkeypatch.setattr("ucseg_runtime.clip_model._PIXELS_AT_A_TIME", 2 * 50 * 70)
    segment(tmp_path / "in", tmp_path / "two at a time", models["ES", 3])
    for name in ("segmentation.dcm", "timeline.csv", "montage.png", "record.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "two at a time" / name).read_bytes(), name


def test_clip_without_any_object_has_all_frames_empty(models: dict[tuple[str, int], Model], tmp_path: Path) -> None:
    clip = ClipPhantom(modality="US", photometric="MONOCHROME2", frames=3)

    def darken(dataset: pydicom.FileDataset) -> None:
        dataset.PixelData = b"\10" * len(dataset.PixelData)

    clip.write(tmp_path / "in" / "clip.dcm", edit=darken)
    seg = segment(tmp_path / "in", tmp_path / "out", models["US", 1])
    assert seg.NumberOfFrames == 3
    assert not seg.pixel_array.any()
    assert conformance(tmp_path / "out" / "segmentation.dcm").errors == {}


def test_colour_for_a_grey_model_and_grey_for_a_colour_model_are_noted(
    models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    ClipPhantom(modality="US", frames=2).write(tmp_path / "colour" / "clip.dcm")
    result = segment_series(tmp_path / "colour", tmp_path / "a", models["US", 1], OPTIONS, OutputOptions())
    assert "2 frames are in colour; the model takes grey" in " ".join(result.found.notes)
    grey = ClipPhantom(modality="US", frames=1, photometric="MONOCHROME2")
    grey.write(tmp_path / "grey" / "clip.dcm")
    result = segment_series(tmp_path / "grey", tmp_path / "b", models["US", 3], OPTIONS, OutputOptions())
    assert "1 frame is in grey; the model takes colour" in " ".join(result.found.notes)
    assert_shows(planes(pydicom.dcmread(tmp_path / "b" / "segmentation.dcm"))[grey.sop_uid, 0], grey.mask(0))


def test_secondary_capture_of_another_modality_is_taken_when_it_is_named(
    models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    clip = ClipPhantom(modality="OT", frames=2)
    clip.write(tmp_path / "in" / "clip.dcm")
    with pytest.raises(InputError, match="--series") as refused:
        segment(tmp_path / "in", tmp_path / "out", models["ES", 3])
    assert refused.value.code == "UCSEG-E121"
    named = InputOptions(series_uid=str(clip.dataset().SeriesInstanceUID))
    segment_series(tmp_path / "in", tmp_path / "out", models["ES", 3], OPTIONS, OutputOptions(), named)
    assert len(planes(pydicom.dcmread(tmp_path / "out" / "segmentation.dcm"))) == 2


@pytest.mark.parametrize(
    ("kind", "outputs", "words"),
    [
        ("fractional", OutputOptions(SegEncoding("fractional")), "fractions"),
        ("nifti", OutputOptions(extras=frozenset({"nifti"})), "nifti"),
        ("report", OutputOptions(extras=frozenset({"report"})), "report"),
    ],
)
def test_what_frames_cannot_have_is_refused(
    kind: str, outputs: OutputOptions, words: str, models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    ClipPhantom(frames=1).write(tmp_path / "in" / "clip.dcm")
    with pytest.raises(UcsegError, match=words):
        segment(tmp_path / "in", tmp_path / "out", models["ES", 3], outputs)
    assert not (tmp_path / "out").exists()


def test_sizes_that_differ_are_refused(models: dict[tuple[str, int], Model], tmp_path: Path) -> None:
    ClipPhantom(frames=1, instance=1).write(tmp_path / "in" / "a.dcm")
    replace(ClipPhantom(frames=1, instance=2), rows=60).write(tmp_path / "in" / "b.dcm")
    with pytest.raises(InputError, match="60 x 70 pixels") as refused:
        segment(tmp_path / "in", tmp_path / "out", models["ES", 3])
    assert refused.value.code == "UCSEG-E119"


def test_command_line_segments_inspects_and_plans_a_clip(tmp_path: Path) -> None:
    ClipPhantom(frames=4).write(tmp_path / "in" / "clip.dcm")
    model = str(colour_model().write(tmp_path / "model"))
    source = str(tmp_path / "in")

    inspected = CliRunner().invoke(app, ["inspect", source, "--model", model])
    assert inspected.exit_code == 0, inspected.output
    assert "4 × 50 × 70" in inspected.stdout
    planned = CliRunner().invoke(app, ["plan", source, "--model", model, "--no-gate", "--json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["tiles"] == 4
    arguments = ["segment", source, "--model", model, "--no-gate", "--out", str(tmp_path / "out")]
    segmented = CliRunner().invoke(app, arguments)
    assert segmented.exit_code == 0, segmented.output
    assert "largest area px" in segmented.stdout
    as_json = json.loads(CliRunner().invoke(app, [*arguments, "--overwrite", "--json"]).stdout)
    assert as_json["measurements"][0]["frames"] == 4
    assert as_json["files"] == ["segmentation.dcm", "montage.png", "timeline.csv", "record.json"]
    within = [*arguments, "--overwrite", "--max-memory", "4000"]
    assert CliRunner().invoke(app, within).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--max-memory", "10"]).exit_code == 3
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--second-look"])
    assert again.exit_code == 3
    assert "a second look is for volumes" in " ".join(again.stderr.split())


def test_several_clips_are_segmented_one_after_the_other(tmp_path: Path) -> None:
    for name, frames in (("a", 2), ("b", 3)):
        ClipPhantom(frames=frames).write(tmp_path / name / "clip.dcm")
    model = str(colour_model().write(tmp_path / "model"))
    sources = [str(tmp_path / name) for name in "ab"]
    result = CliRunner().invoke(
        app, ["segment", *sources, "--model", model, "--no-gate", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    for number, frames in (("1", 2), ("2", 3)):
        assert pydicom.dcmread(tmp_path / "out" / number / "segmentation.dcm").NumberOfFrames == frames
    assert "class 1 in 3 frames" in result.stdout


def test_clip_in_a_zip_archive_is_read_while_it_is_segmented(
    models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    path = ClipPhantom(frames=2).write(tmp_path / "clip.dcm")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(path, "clip.dcm")
    assert segment(tmp_path / "in.zip", tmp_path / "out", models["ES", 3]).NumberOfFrames == 2


def test_frame_that_cannot_be_decoded_is_named_and_nothing_is_left(
    models: dict[tuple[str, int], Model], tmp_path: Path
) -> None:
    def spoil(dataset: pydicom.FileDataset) -> None:
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=5))
        frames[2] = frames[2][:20] + b"\0" * 200 + frames[2][-2:]
        dataset.PixelData = pydicom.encaps.encapsulate(frames)

    KINDS["jpeg ybr"].write(tmp_path / "in" / "clip.dcm", edit=spoil)
    with pytest.raises(InputError, match="frame 3 of file 1 of 1") as refused:
        segment(tmp_path / "in", tmp_path / "out", models["ES", 3])
    assert refused.value.code in {"UCSEG-E104", "UCSEG-E106"}
    assert not (tmp_path / "out").exists()


def test_clip_in_a_zip_archive_is_refused_beside_other_inputs(tmp_path: Path) -> None:
    path = ClipPhantom(frames=2).write(tmp_path / "folder" / "clip.dcm")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(path, "clip.dcm")
    model = str(colour_model().write(tmp_path / "model"))
    sources = [str(tmp_path / "in.zip"), str(tmp_path / "folder")]
    arguments = ["segment", *sources, "--model", model, "--no-gate", "--json", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 7, result.output
    refused, done = json.loads(result.stdout)
    assert "zip archive" in refused["error"]["message"]
    assert done["measurements"][0]["frames"] == 2


def test_batch_counts_frames_and_areas_of_clips(tmp_path: Path) -> None:
    ClipPhantom(frames=3).write(tmp_path / "in" / "clip.dcm")
    model = str(colour_model().write(tmp_path / "model"))
    arguments = ["batch", str(tmp_path / "in"), "--model", model, "--no-gate", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["class 1_frames"] == "3"
    assert int(row["class 1_largest_area_px"]) > 200
    assert "class 1_ml" not in row
