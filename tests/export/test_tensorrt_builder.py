"""What the builder is told, and the timings that it keeps: on TensorRT-RTX's own objects, which have the same calls."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ucseg_export.tensorrt_builder import Builder, BuildOptions, TimingCache, configuration, load_builder
from ucseg_export.to_tensorrt import build_engine
from ucseg_runtime.errors import BackendUnavailableError, OutputError
from ucseg_runtime.model_folder import default_model_folder, load_model

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra tensorrt-rtx is not installed")

FOR_AMPERE = BuildOptions(precision="fp32", compute_capability="8.6")


class RecordedTimings:
    """A timing cache of TensorRT, as far as it is used."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class RecordingConfiguration:
    """A builder's configuration that notes which timings it was given, and has learned one more when asked."""

    def __init__(self, accepts: tuple[bytes, ...]) -> None:
        self.accepts = accepts
        self.given: list[bytes] = []

    def create_timing_cache(self, content: bytes) -> RecordedTimings:
        return RecordedTimings(content)

    def set_timing_cache(self, cache: RecordedTimings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU are no timings"
        self.given.append(cache.content)
        return cache.content in self.accepts

    def get_timing_cache(self) -> RecordedTimings:
        return RecordedTimings(self.given[-1] + b"+kernel")


def test_timings_of_one_build_serve_the_next(tmp_path: Path) -> None:
    timings = TimingCache(tmp_path / "engines" / "known.timings", enabled=True)
    first, second = RecordingConfiguration((b"",)), RecordingConfiguration((b"+kernel",))
    for settings in (first, second):
        timings.load_into(settings)
        timings.save_from(settings)
    assert (first.given, second.given) == ([b""], [b"+kernel"])
    assert [file.name for file in (tmp_path / "engines").iterdir()] == ["known.timings"]
    assert (tmp_path / "engines" / "known.timings").read_bytes() == b"+kernel+kernel"


def test_timings_that_the_builder_does_not_accept_are_measured_again(tmp_path: Path) -> None:
    (tmp_path / "known.timings").write_bytes(b"of another driver")
    settings = RecordingConfiguration((b"",))
    TimingCache(tmp_path / "known.timings", enabled=True).load_into(settings)
    assert settings.given == [b"of another driver", b""]


def test_timings_that_cannot_be_read_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError

    (tmp_path / "known.timings").write_bytes(b"of somebody else")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    settings = RecordingConfiguration((b"",))
    TimingCache(tmp_path / "known.timings", enabled=True).load_into(settings)
    assert settings.given == [b""]


def test_tensorrt_whose_libraries_are_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: libnvinfer.so: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(BackendUnavailableError, match=r"Building engines needs .*ucseg\[tensorrt-rtx\]"):
        load_builder()


def test_timings_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "known.timings").write_bytes(b"old")
    timings, settings = TimingCache(tmp_path / "known.timings", enabled=True), RecordingConfiguration((b"old",))
    timings.load_into(settings)
    monkeypatch.setattr("ucseg_export.tensorrt_builder.os.replace", fail)
    with pytest.raises(OutputError, match="timings of the engines cannot be written"):
        timings.save_from(settings)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("known.timings", b"old")]


def test_each_builder_version_and_gpu_has_timings_of_its_own(tmp_path: Path) -> None:
    class Package:
        __version__ = "10.13.0"

    settings = RecordingConfiguration((b"",))
    for target in ("8.6", "9.0"):
        timings = TimingCache.beside(tmp_path, Builder("tensorrt", Package), target)
        timings.load_into(settings)
        timings.save_from(settings)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "tensorrt-10.13.0_sm86.timings",
        "tensorrt-10.13.0_sm90.timings",
    ]
    assert settings.given == [b"", b""]


def test_calls_for_timings_are_those_that_the_bindings_have(tmp_path: Path) -> None:
    """TensorRT-RTX has TensorRT's calls and lets them do nothing, so that a build shows that they are right."""
    model = load_model(default_model_folder())
    as_tensorrt = Builder("tensorrt", load_builder().package)
    timings = TimingCache.beside(tmp_path, as_tensorrt, "8.6")
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match="Timing cache operations are no-ops in TensorRT-RTX"):
            build_engine(model.graph("decode"), "decode", model.manifest, FOR_AMPERE, as_tensorrt, timings=timings)
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size > 0


def test_builder_that_keeps_no_timings_leaves_no_file(tmp_path: Path) -> None:
    model, builder = load_model(default_model_folder()), load_builder()
    assert builder.name == "tensorrt_rtx"
    timings = TimingCache.beside(tmp_path, builder, "8.6")
    build_engine(model.graph("decode"), "decode", model.manifest, FOR_AMPERE, builder, timings=timings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"version_compatible": True}, "--version-compatible"),
        ({"hardware_compatible": True}, "--hardware-compatible"),
        ({"version_compatible": True, "hardware_compatible": True}, "--version-compatible and no --hardware"),
    ],
)
def test_compatibility_that_tensorrt_rtx_has_not_is_refused(asked: dict[str, bool], named: str) -> None:
    """It only warns of the one, and the other needs a library that its packages do not bring."""
    model = load_model(default_model_folder())
    options = dataclasses.replace(FOR_AMPERE, **asked)
    with pytest.raises(BackendUnavailableError, match=f"TensorRT-RTX .* has no {named}"):
        build_engine(model.graph("upg"), "upg", model.manifest, options, load_builder())


def test_compatibility_is_told_to_tensorrt() -> None:
    """The bindings of TensorRT-RTX take both settings, which is all that can be seen without TensorRT and a GPU."""
    trt = load_builder().package
    build = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = build.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.add_input("IMAGE", trt.DataType.FLOAT, (-1, 1, 4, 4, 4))
    options = BuildOptions(version_compatible=True, hardware_compatible=True)
    settings = configuration(Builder("tensorrt", trt), build, network, options)
    assert settings.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert not settings.get_flag(trt.BuilderFlag.TF32)
    plain = configuration(Builder("tensorrt", trt), build, network, BuildOptions(precision="tf32"))
    assert not plain.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert plain.get_flag(trt.BuilderFlag.TF32)


def test_engines_are_for_the_named_gpu_else_for_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = load_builder()
    assert builder.target(BuildOptions(compute_capability="12.0")) == "12.0"
    monkeypatch.setattr("ucseg_export.tensorrt_builder.cuda_devices", lambda: 0)
    assert builder.target(BuildOptions()) == "default"
    monkeypatch.setattr("ucseg_export.tensorrt_builder.cuda_devices", lambda: 1)
    monkeypatch.setattr("ucseg_export.tensorrt_builder.gpu_capability", lambda device: f"9.{device}")
    assert builder.target(BuildOptions()) == "9.0"
