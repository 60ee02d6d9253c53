"""The study: which runs it has, that finished runs stay, and what its report says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.training_phantom import TINY, block_case, tiny_model_spec, tiny_spec
from ucseg_training.cli.app import app
from ucseg_training.data.augment import AugmentSpec
from ucseg_training.data.case_batches import CaseBatches, CaseSampling
from ucseg_training.demo_training import CASE_WEIGHTS
from ucseg_training.errors import TrainingError
from ucseg_training.evaluate import evaluate
from ucseg_training.method.config import MethodConfig
from ucseg_training.optimisation import Optimisation
from ucseg_training.scoring import ScoreRow
from ucseg_training.study import runner
from ucseg_training.study.design import SEEDS, Study, StudyRun, study_runs, variants
from ucseg_training.study.phantom import TEST_PLANES, held_out_planes, phantom_study
from ucseg_training.study.report import write_report
from ucseg_training.study.results import RunResult, curves_of, dice_of, load_results, save_results
from ucseg_training.study.runner import RESULT_NAME, finished, run_study
from ucseg_training.study.torso import torso_study
from ucseg_training.training_plan import TrainingPlan

STEPS = 4
SUPERVISED, UC_SEG = StudyRun("supervised", 42, STEPS), StudyRun("uc_seg", 42, STEPS)
SPEC = tiny_spec()
TEST_CASE = block_case("T")


def _batches(seed: int, unlabelled: bool, stream: int) -> CaseBatches:
    sampling = CaseSampling(
        tile_shape=SPEC.tiling.tile_shape,
        num_classes=3,
        preprocessing=SPEC.preprocessing,
        augment=AugmentSpec(enhancement_hu={}),
        labelled_weights={"P": 1.0},
        unlabelled_weights={"Q": 1.0} if unlabelled else {},
        seed=seed,
        stream=stream,
    )
    return CaseBatches([block_case("P"), block_case("Q")], sampling)


def _plan(run: StudyRun, method: MethodConfig) -> TrainingPlan:
    optimisation = Optimisation(kind="adamw", learning_rate=1e-3, schedule="cosine", warm_up=1, gradient_norm=1.0)
    return TrainingPlan(
        trio=TINY,
        method=method,
        optimisation=optimisation,
        steps=run.steps,
        seed=run.seed,
        model_spec=tiny_model_spec(),
    )


TINY_STUDY = Study(
    name="tiny",
    classes=tuple(item.name for item in SPEC.classes),
    whole=MethodConfig(dice="batch", largest_component=False),
    plan=_plan,
    batches=_batches,
    score=lambda checkpoint: evaluate(checkpoint, [TEST_CASE], surfaces=False),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny study after two of its runs."""
    folder = tmp_path_factory.mktemp("study")
    run_study(TINY_STUDY, folder, [SUPERVISED, UC_SEG])
    return folder


def test_every_variant_differs_from_the_whole_method_in_what_its_name_says() -> None:
    whole = MethodConfig(total_steps=100)
    forms = variants(whole)
    assert forms.keys() == SEEDS.keys()
    assert forms["uc_seg"] == whole
    assert forms["without_ccp"] == replace(whole, use_ccp=False)
    assert forms["without_upg"] == replace(whole, pseudo_labels="mean")
    assert forms["without_mixing"] == replace(whole, use_mixing=False)
    assert forms["mean_teacher"] == replace(whole, pseudo_labels="teacher", use_ccp=False, use_mixing=False)
    assert forms["supervised"] == replace(whole, pseudo_labels="none", use_ccp=False, use_mixing=False)


def test_first_runs_are_one_of_every_variant() -> None:
    runs = study_runs(600)
    assert len(runs) == len({run.name for run in runs}) == 12
    assert [run.variant for run in runs[:6]] == list(SEEDS)
    assert {run.steps for run in runs} == {600}


def test_whole_method_uses_all_its_terms_and_labels_alone_do_not(done: Path) -> None:
    supervised, uc_seg = finished(done, [SUPERVISED, UC_SEG])
    assert not any(name.startswith(("contrast", "mixed", "unsupervised", "difference")) for name in supervised.curves)
    assert {name.split(".")[0].split("_")[0] for name in uc_seg.curves} > {
        name.split(".")[0].split("_")[0] for name in supervised.curves
    }
    assert supervised.curves["step"] == uc_seg.curves["step"] == [float(STEPS)]


def test_score_is_that_of_the_last_checkpoint(done: Path) -> None:
    (result,) = finished(done, [UC_SEG])
    rows = list(evaluate(done / UC_SEG.name / "settled.safetensors", [TEST_CASE], surfaces=False))
    assert result.dice == dice_of(rows)
    assert result.dice.keys() == {"fused", "subnet_a", "subnet_b", "mean"}


def test_finished_run_is_not_repeated(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise AssertionError("trained again")

    monkeypatch.setattr(runner, "train", fail)
    before = (done / UC_SEG.name / RESULT_NAME).read_bytes()
    run_study(TINY_STUDY, done, [UC_SEG])
    assert (done / UC_SEG.name / RESULT_NAME).read_bytes() == before
    with pytest.raises(AssertionError, match="trained again"):
        run_study(TINY_STUDY, done, [StudyRun("uc_seg", 43, STEPS)])


def _result(variant: str, seed: int, liver: float, spine: float) -> RunResult:
    dice = {output: {"liver": liver, "spine": spine} for output in ("fused", "subnet_a", "subnet_b", "mean")}
    curves = {"step": [20.0, 40.0], "supervised_fused.dice": [0.9, 0.5], "supervised_fused.cross_entropy": [1.0, 0.5]}
    return RunResult(StudyRun(variant, seed, 40), "f32", dice, curves)


RESULTS = [_result("supervised", 42, 0.2, 0.4), _result("supervised", 43, 0.4, 0.6), _result("uc_seg", 42, 0.7, 0.1)]
NAMED = replace(TINY_STUDY, classes=("liver", "spine"))


def _row(text: str, variant: str, number: int = 0) -> list[str]:
    return re.findall(rf"^\| {variant} \|(.*)\|$", text, flags=re.MULTILINE)[number].replace(" ", "").split("|")


def test_report_gives_mean_and_spread_over_the_seeds(tmp_path: Path) -> None:
    _, table, plot = write_report(NAMED, RESULTS, study_runs(40), tmp_path)
    text = table.read_text(encoding="utf-8")
    assert "# Study: tiny, 40 steps" in text
    assert "3 of 12 runs" in text
    assert _row(text, "supervised") == ["42,43", *["0.400±0.141"] * 4]
    assert _row(text, "uc_seg") == ["42", *["0.400"] * 4]
    assert _row(text, "supervised", 1) == ["0.300±0.141", "0.500±0.141"]
    assert "mean_teacher" not in text
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert plot.stat().st_size > 10_000


def test_report_keeps_results_that_were_made_elsewhere(tmp_path: Path) -> None:
    write_report(NAMED, RESULTS[:1], study_runs(40), tmp_path)
    data, table, _ = write_report(NAMED, RESULTS[1:], study_runs(40), tmp_path)
    in_order = [RESULTS[0], RESULTS[2], RESULTS[1]]
    assert load_results(data) == in_order, "one seed of every variant comes first"
    assert "3 of 12 runs" in table.read_text(encoding="utf-8")


def test_results_of_another_length_are_not_mixed_in(tmp_path: Path) -> None:
    write_report(NAMED, RESULTS, study_runs(40), tmp_path)
    longer = replace(RESULTS[0], run=replace(RESULTS[0].run, steps=600))
    data, *_ = write_report(NAMED, [longer], study_runs(600), tmp_path)
    assert load_results(data) == [longer]
    assert load_results(data.with_name(data.name.replace("-600", "-40"))), "the shorter study is still there"


def test_report_of_nothing_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run of the study is finished"):
        write_report(NAMED, [], study_runs(40), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study-tiny.json"
    path.write_text(json.dumps([{"run": {}}]), encoding="utf-8")
    with pytest.raises(TrainingError, match="does not hold results"):
        load_results(path)


def test_results_survive_their_file(tmp_path: Path) -> None:
    save_results(RESULTS, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_curves_are_means_of_windows_and_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    table = tmp_path / "terms.csv"
    lines = [f"{step},total,{float(step)}" for step in range(1, 31)] + ["30,total,40.0", "25,late,7.0"]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert curves_of(table) == {"step": [20.0, 30.0], "late": [None, 7.0], "total": [10.5, 26.5]}


def test_dice_is_the_mean_over_cases() -> None:
    rows = [ScoreRow(case, "liver", "fused", {"dice": value}) for case, value in (("P", 0.2), ("Q", 0.4))]
    assert dice_of(rows) == {"fused": {"liver": 0.3}}


@pytest.mark.parametrize("variant", SEEDS)
def test_torso_study_trains_on_b_c_d_and_looks_at_two_more(variant: str) -> None:
    study = torso_study([block_case(name) for name in CASE_WEIGHTS], block_case("A"))
    run = StudyRun(variant, 42, 100)
    method = study.method(run)
    plan = study.plan(run, method)
    assert (plan.steps, plan.method.total_steps, plan.trio.tile_shape) == (100, 100, (48, 48, 48))
    described = study.batches(42, method.pseudo_labels != "none", 0).describe()
    expected = {"B", "C", "D"} if variant == "supervised" else set(CASE_WEIGHTS)
    assert set(described["cases"]) == expected  # type: ignore[call-overload]  # JSON-able words


@pytest.mark.parametrize("variant", SEEDS)
def test_phantom_study_differs_in_method_and_data_alone(variant: str) -> None:
    study, run = phantom_study(), StudyRun(variant, 42, 100)
    method = study.method(run)
    plan = study.plan(run, method)
    reference = study.plan(StudyRun("uc_seg", 42, 100), study.whole)
    assert (plan.method, plan.steps) == (method, 100)
    assert (plan.trio, plan.optimisation, plan.seed) == (reference.trio, reference.optimisation, reference.seed)


def test_planes_to_score_on_show_an_object_and_stay_the_same() -> None:
    planes, again = list(held_out_planes()), list(held_out_planes())
    assert len(planes) == TEST_PLANES
    for plane, same in zip(planes, again, strict=True):
        assert plane.label_map is not None
        assert plane.label_map.any()
        assert 0.0 <= plane.image.min() < plane.image.max() <= 1.0
        np.testing.assert_array_equal(plane.image, same.image)


def test_planes_to_score_on_are_none_that_a_run_learns_from() -> None:
    held_out = {plane.image[0].tobytes() for plane in held_out_planes()}
    study = phantom_study()
    for seed in (42, 43, 44):
        batch = study.batches(seed, True, 0).draw(0)
        assert batch.unlabelled is not None
        learnt = {plane[0].numpy().tobytes() for plane in (*batch.labelled, *batch.unlabelled)}
        assert not learnt & held_out


@pytest.mark.slow
def test_command_does_one_run_and_reports_it(tmp_path: Path) -> None:
    arguments = ["study", "--data", "phantom", "--steps", "1", "--only", "uc_seg-42", "--out", str(tmp_path / "study")]
    result = CliRunner().invoke(app, [*arguments, "--report", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "study-phantom-1.json",
        "study-phantom-1.md",
        "study-phantom-1.png",
    ]
    (outcome,) = load_results(tmp_path / "report" / "study-phantom-1.json")
    assert outcome.run == StudyRun("uc_seg", 42, 1)
    assert 0.0 <= outcome.mean("fused", ["object"]) <= 1.0


def test_unknown_run_is_wrong_use(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "--only", "uc_seg-7", "--out", str(tmp_path / "study")])
    assert result.exit_code == 2
    assert not (tmp_path / "study").exists()
