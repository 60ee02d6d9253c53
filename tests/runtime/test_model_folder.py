"""Model folders: only what the manifest names is loaded, and nothing reaches out of its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.model_phantom import ModelPhantom, replace_artifact
from ucseg_runtime import onnx_scan
from ucseg_runtime.errors import ArtifactMismatchError, ManifestError, ModelError
from ucseg_runtime.model_folder import available_models, find_model, load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ModelPhantom().write(tmp_path / "secretname")


def test_intact_folder_loads_and_gives_the_bytes_of_every_graph(folder: Path) -> None:
    model = load_model(folder)
    assert model.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    for key, artifact in model.manifest.artifacts.items():
        assert model.graph(key) == (folder / artifact.file).read_bytes()


def test_files_that_the_manifest_does_not_name_are_ignored(folder: Path) -> None:
    (folder / "LICENSE").write_text("words")
    assert load_model(folder).manifest.name == "phantom"


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def replace_by_link(file: Path) -> None:
    target = file.with_name("elsewhere.bin")
    file.rename(target)
    file.symlink_to(target)


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("key", ["merged", "upg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_one_bit, r"has SHA-256 \w{12}…; the manifest says \w{12}…"),
        (append, r"has \d+ bytes or more; the manifest says \d+"),
        (truncate, r"has \d+ bytes or more; the manifest says \d+"),
        (Path.unlink, "No such file"),
        (replace_by_link, "cannot be read"),
        (replace_by_pipe, "not a plain file"),
        (replace_by_folder, "cannot be read"),
    ],
)
def test_artifact_that_is_not_the_named_file_is_refused(
    folder: Path, key: str, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder / f"{key}.onnx")
    with pytest.raises(ArtifactMismatchError, match=f"artifact {key} .*{reason}") as caught:
        load_model(folder)
    assert "secretname" not in str(caught.value)
    assert ".onnx" not in str(caught.value)


def test_file_that_changes_after_loading_never_reaches_an_engine(folder: Path) -> None:
    model = load_model(folder)
    flip_one_bit(folder / "merged.onnx")
    with pytest.raises(ArtifactMismatchError, match="artifact merged"):
        model.graph("merged")


@pytest.mark.parametrize("damage", [Path.unlink, replace_by_link, replace_by_pipe], ids=["missing", "link", "pipe"])
def test_manifest_that_is_no_plain_file_is_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "manifest.json")
    with pytest.raises(ManifestError, match="no readable manifest.json"):
        load_model(folder)


def small_graph(node: onnx.NodeProto, **extra: object) -> onnx.ModelProto:
    """A model with one operator; foreign operators need not make sense."""
    image = helper.make_tensor_value_info("IMAGE", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("RESULT", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([node], "small", [image], [result]), **extra)


def relu(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("Relu", ["IMAGE"], ["RESULT"], domain=domain)


def external_tensor() -> onnx.TensorProto:
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def with_external_weights() -> onnx.ModelProto:
    model = small_graph(relu())
    model.graph.initializer.append(external_tensor())
    return model


def with_external_constant() -> onnx.ModelProto:
    return small_graph(helper.make_node("Constant", [], ["RESULT"], value=external_tensor()))


def with_foreign_operator() -> onnx.ModelProto:
    return small_graph(relu("com.microsoft"))


def with_foreign_operator_in_a_branch() -> onnx.ModelProto:
    branch = small_graph(relu("evil")).graph
    return small_graph(helper.make_node("If", ["IMAGE"], ["RESULT"], then_branch=branch, else_branch=branch))


def with_foreign_operator_in_a_list_of_branches() -> onnx.ModelProto:
    return small_graph(helper.make_node("Relu", ["IMAGE"], ["RESULT"], graphs=[small_graph(relu("evil")).graph]))


def with_external_tensor_in_a_list() -> onnx.ModelProto:
    return small_graph(helper.make_node("Relu", ["IMAGE"], ["RESULT"], tensors=[external_tensor()]))


def with_external_sparse_weights() -> onnx.ModelProto:
    model = small_graph(relu())
    model.graph.sparse_initializer.add().values.CopyFrom(external_tensor())
    return model


def with_own_function() -> onnx.ModelProto:
    function = helper.make_function("own", "F", ["IMAGE"], ["RESULT"], [relu("evil")], [helper.make_opsetid("", 17)])
    return small_graph(relu(), functions=[function])


@pytest.mark.parametrize(
    ("build", "objection"),
    [
        (with_external_weights, "weights in another file"),
        (with_external_constant, "weights in another file"),
        (with_external_tensor_in_a_list, "weights in another file"),
        (with_external_sparse_weights, "weights in another file"),
        (with_foreign_operator_in_a_list_of_branches, "operators of a foreign domain"),
        (with_foreign_operator, "operators of a foreign domain"),
        (with_foreign_operator_in_a_branch, "operators of a foreign domain"),
        (with_own_function, "functions of its own"),
    ],
)
def test_graph_that_asks_for_more_than_itself_is_refused(
    folder: Path, build: Callable[[], onnx.ModelProto], objection: str
) -> None:
    content = build().SerializeToString()
    assert onnx_scan.objections(content) == {objection}
    replace_artifact(folder, "decode", content)
    with pytest.raises(ArtifactMismatchError, match=f"artifact decode has {objection}"):
        load_model(folder)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_standard_operators_are_accepted(domain: str) -> None:
    assert onnx_scan.objections(small_graph(relu(domain)).SerializeToString()) == frozenset()


def test_graph_nested_deeper_than_python_recurses_is_scanned() -> None:
    graph = small_graph(relu("evil")).graph.SerializeToString()
    for _ in range(3000):
        attribute = wrapped(6, graph)
        graph = wrapped(1, wrapped(5, attribute))
    assert onnx_scan.objections(wrapped(7, graph)) == {"operators of a foreign domain"}


def wrapped(number: int, content: bytes) -> bytes:
    """A message as field `number` of another one, in the protobuf wire format."""
    size, length = len(content), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 not a graph", id="zip"),
        pytest.param(b"\x80\x02}q\x00.", id="pickle"),
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", id="length past the end"),
        pytest.param(b"\x3a" + b"\xff" * 12, id="endless number"),
        pytest.param(b"\x38\x01", id="graph as a number"),
    ],
)
def test_what_is_no_onnx_file_is_refused(folder: Path, content: bytes) -> None:
    replace_artifact(folder, "upg", content)
    with pytest.raises(ArtifactMismatchError, match="artifact upg is not an ONNX file"):
        load_model(folder)


def test_every_truncation_of_a_graph_is_refused_or_scanned_without_failing() -> None:
    content = with_foreign_operator_in_a_branch().SerializeToString()
    outcomes = set()
    for length in range(len(content)):
        try:
            outcomes.add(onnx_scan.objections(content[:length]))
        except ValueError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_models_of_the_users_folder_are_found_by_name(tmp_path: Path) -> None:
    ModelPhantom().write(tmp_path / "zebra")
    ModelPhantom().write(tmp_path / "ant")
    (tmp_path / "no model").mkdir()
    found = available_models(tmp_path)
    assert list(found) == sorted(found)
    assert {"ant", "zebra"} <= set(found)
    assert "no model" not in found
    assert find_model("ant", tmp_path) == tmp_path / "ant"


def test_unknown_model_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    ModelPhantom().write(tmp_path / "ant")
    with pytest.raises(ModelError, match="no model 'bee'; found: .*ant"):
        find_model("bee", tmp_path)
