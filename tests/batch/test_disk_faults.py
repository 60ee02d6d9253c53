"""Every single thing that is asked of the disk goes wrong once: old or new results, never a mixture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from tests.batch.exports import TINY, write_model
from tests.batch.faulty_disk import Effect, PowerCut, faulty_disk
from tests.phantoms import write_ct_series
from ucseg_runtime.backends.opening import engine_of, open_backend
from ucseg_runtime.batch.ledger import Expected, why_not_done
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, OutputOptions, SegEncoding
from ucseg_runtime.errors import OutputError
from ucseg_runtime.input_steps import InferredInput, infer_input, read_input, write_input
from ucseg_runtime.inputs import found_in
from ucseg_runtime.model_folder import Model, load_model
from ucseg_runtime.publish import check_output_folder
from ucseg_runtime.run_identity import run_identity, settings_of
from ucseg_runtime.series_steps import StageTimes

INFERENCE = InferenceOptions(engine="openvino")
OLD_OUTPUTS = OutputOptions(extras=frozenset({"nifti", "preview"}), overwrite=True)
NEW_OUTPUTS = OutputOptions(SegEncoding("labelmap"), extras=frozenset({"rtstruct", "nrrd", "preview"}), overwrite=True)
POINTS_OF_A_QUICK_RUN = 12

Tree = dict[str, bytes]


@dataclass(frozen=True, eq=False)
class Run:
    """A series that was segmented and only has to be written."""

    model: Model
    inferred: InferredInput
    outputs: OutputOptions

    def write(self, folder: Path) -> None:
        write_input(self.inferred, folder, INFERENCE, self.outputs)

    def is_done(self, folder: Path) -> bool:
        """Whether a batch would take what the folder holds for finished results of this run."""
        identity = run_identity(self.model, engine_of(self.model, INFERENCE), INFERENCE, self.outputs).as_json()
        expected = {"identity": identity, "settings": settings_of(INFERENCE, self.outputs)}
        return not why_not_done(folder, Expected(expected, self.inferred.found.content))


@dataclass(frozen=True, eq=False)
class Case:
    """Results of one run are replaced by those of another; what the disk is asked for meanwhile."""

    old: Run
    new: Run
    old_tree: Tree
    new_tree: Tree
    operations: tuple[str, ...]
    bytes_written: int

    def points(self) -> list[int]:
        """The operations that go wrong, one at a time."""
        step = 1 if os.environ.get("UCSEG_TEST_LONG") == "1" else len(self.operations) // POINTS_OF_A_QUICK_RUN
        return list(range(1, len(self.operations) + 1, step))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    model = load_model(write_model(folder / "model"))
    write_ct_series(folder / "study", TINY)
    old, new = (_segmented(folder / "study", model, outputs) for outputs in (OLD_OUTPUTS, NEW_OUTPUTS))
    old.write(folder / "old")
    old.write(folder / "new")
    with faulty_disk() as disk:
        new.write(folder / "new")
    return Case(
        old,
        new,
        tree(folder / "old"),
        tree(folder / "new"),
        tuple(disk.operations),
        sum(disk.written.values()),
    )


def _segmented(study: Path, model: Model, outputs: OutputOptions) -> Run:
    with found_in(study, model.manifest, WHATEVER_FITS) as found:
        read = read_input(found, StageTimes())
    return Run(model, infer_input(read, model, open_backend(model, INFERENCE), INFERENCE, outputs), outputs)


def tree(folder: Path) -> Tree:
    """Everything below a folder, hidden or not."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_of_the_results_passes_the_disk_that_is_harmed(case: Case) -> None:
    assert case.bytes_written >= sum(len(content) for content in case.new_tree.values())
    assert {"create", "write", "fsync", "rename", "mkdir"} <= set(case.operations)


@pytest.mark.slow
@pytest.mark.parametrize("effect", get_args(Effect))
def test_whatever_goes_wrong_on_the_disk_leaves_old_or_new_results(case: Case, effect: Effect, tmp_path: Path) -> None:
    for point in case.points():
        folder = tmp_path / str(point)
        case.old.write(folder)
        where = f"{effect} at {point} ({case.operations[point - 1]}) of {len(case.operations)}"
        with faulty_disk(effect, point) as disk:
            try:
                case.new.write(folder)
            except (OutputError, PowerCut) as error:
                failed = type(error)
            else:
                failed = None
        if effect == "cut":
            assert failed is PowerCut, where
            disk.lose_what_was_not_synchronised(folder)
            check_output_folder(folder, overwrite=True)  # as the next run does
        left = tree(folder)
        if effect == "dropped":  # nobody was told: then nothing that is incomplete may count as done
            assert left == case.new_tree or not case.new.is_done(folder), where
        elif failed is None:
            assert left == case.new_tree, where
        else:
            assert left == case.old_tree or (effect == "cut" and left == case.new_tree), where
            assert case.old.is_done(folder) or left == case.new_tree, where

        case.new.write(folder)
        assert tree(folder) == case.new_tree, f"{where}: resumed"
