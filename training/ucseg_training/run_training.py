"""Training on a user's data set: from a description and a folder to a checkpoint."""

from __future__ import annotations

import logging
import os
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ucseg_runtime.errors import InputError
from ucseg_runtime.manifest import ModelSpec
from ucseg_training.batches import ShareOfWorker
from ucseg_training.checkpoint import load_training_state
from ucseg_training.data.case_list import find_cases
from ucseg_training.data.dataset_spec import DatasetSpec
from ucseg_training.data.prepared_set import PreparedSet, SampleFile, prepare_cases
from ucseg_training.data.presets import load_dataset_spec
from ucseg_training.data.sample_batches import SampleBatches
from ucseg_training.distributed import Workers, local_device, workers_of_torchrun
from ucseg_training.evaluate import Scorable, evaluate_sample
from ucseg_training.method.config import MethodConfig, Mode, PseudoLabelSource
from ucseg_training.nets import DualNet, TrioConfig
from ucseg_training.observers import LogLines, Observer, ProgressBar, TensorBoard
from ucseg_training.optimisation import Optimisation
from ucseg_training.trainer import NOT_CHOSEN, STATE_NAME, Run, Validate, train
from ucseg_training.training_plan import TrainingPlan

_LOG = logging.getLogger(__name__)

_TOKENS_ALONG_2D_SIDE = 16


@dataclass(frozen=True)
class RunOptions:
    """What the user chooses.

    Attributes:
        data: Folder or list of the data set.
        spec_name: Preset or YAML file that describes it.
        labelled: How many training cases are labelled; see `find_cases`.
        steps: Optimiser steps.
        size: ``full`` as upstream, ``slim`` as the demo model.
        mode: ``fixed``, or ``compat`` with upstream's accidents.
        method: ``upg`` is UC-Seg; the others are baselines.
        precision: Of the networks.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Tiles per batch, half of them labelled; the data set's where None.
        accumulate: Batches per step.
        validate_every: Steps between validations; 0 for none.
        checkpoint_every: Steps between states on disk.
        stop_after: Step to stop at before the schedule has ended.
        skip_bad_cases: Whether unusable cases are left out and listed.
        seed: Of everything random; the data set's where None.
        largest_component: As for `MethodConfig`.
    """

    data: Path
    spec_name: str
    labelled: str | None = None
    steps: int = 50_000
    size: Literal["full", "slim"] = "full"
    mode: Mode = "fixed"
    method: PseudoLabelSource = "upg"
    precision: Literal["f32", "bf16"] = "f32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = None
    accumulate: int = 1
    validate_every: int = 200
    checkpoint_every: int = 200
    stop_after: int | None = None
    skip_bad_cases: bool = False
    seed: int | None = None
    largest_component: bool | None = None


@dataclass(frozen=True)
class DryRun:
    """What a run would do, measured on its first steps.

    Attributes:
        labelled: Labelled training samples.
        unlabelled: Unlabelled ones.
        validation: Cases that the weights are chosen on.
        refused: Cases that were left out.
        seconds_per_step: Median of the steps that were tried.
        peak_memory_mb: Of this process, or of its tensors on the GPU.
        memory_mb: That the machine or the GPU has.
    """

    labelled: int
    unlabelled: int
    validation: int
    refused: int
    seconds_per_step: float
    peak_memory_mb: float
    memory_mb: float


def run_training(options: RunOptions, folder: Path, *, show_progress: bool) -> Path:
    """Prepare the data set, train, and write a checkpoint; continues a run that was interrupted.

    Args:
        options: What the user chooses.
        folder: Receives state, checkpoint, log and TensorBoard events; prepared cases go to ``prepared`` beside it.
        show_progress: Whether a bar is shown.

    Returns:
        Path of the checkpoint.

    Raises:
        InputError: The data set cannot be used; nothing was trained.
        TrainingError: Choices do not fit, or the run cannot go on; see `train`.
        OutputError: A file cannot be written.
    """
    device = local_device(options.device)
    with workers_of_torchrun(device) as workers, ExitStack() as stack:
        setup = _Setup.of(options, folder, workers)
        observers: list[Observer] = []
        if workers.is_first:
            done = _steps_done(folder)
            observers = [LogLines(), stack.enter_context(TensorBoard(folder / "tensorboard", done))]
            if show_progress:
                observers.append(stack.enter_context(ProgressBar(setup.plan.last_step, done)))
        return train(
            setup.batches,
            setup.plan,
            folder,
            device=device,
            workers=workers,
            observers=observers,
            validate=setup.validate,
        )


def try_training(options: RunOptions, folder: Path, steps: int = 3) -> DryRun:
    """Check every case and run a few steps, the last of them as late in the schedule as mixing is; write no state.

    Raises:
        InputError: The data set cannot be used.
        TrainingError: Choices do not fit, or a step cannot be done.
    """
    device = local_device(options.device)
    setup = _Setup.of(options, folder, Workers())
    run = Run(setup.plan, setup.batches, device, Workers())
    seconds = []
    for step in range(max(0, setup.plan.steps - steps), setup.plan.steps):
        run.step = step
        started = time.perf_counter()
        run.advance()
        seconds.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device) / 2**20
        there = torch.cuda.get_device_properties(device).total_memory / 2**20
    prepared = setup.prepared
    return DryRun(
        labelled=len(prepared.of("train")),
        unlabelled=len(prepared.of("unlabelled")),
        validation=len(setup.validation),
        refused=len(prepared.refused),
        seconds_per_step=statistics.median(seconds),
        peak_memory_mb=used,
        memory_mb=there,
    )


def trio_for(spec: DatasetSpec, size: Literal["full", "slim"]) -> TrioConfig:
    """The networks for a data set.

    Args:
        spec: Says dimensions, channels, classes and tiles.
        size: ``full`` as upstream, ``slim`` half as wide with a small UPG.
    """
    shape = spec.tiling.tile_shape
    tile_shape: tuple[int, ...] = shape if spec.dim == 3 else shape[1:]
    sizes = (
        TrioConfig(
            dim=spec.dim,
            in_channels=spec.channels,
            num_classes=len(spec.classes) + 1,
            tile_shape=tile_shape,
            activation=spec.activation,
        )
        if spec.dim == 3
        else TrioConfig(
            dim=2,
            in_channels=spec.channels,
            num_classes=len(spec.classes) + 1,
            tile_shape=tile_shape,
            token_side=tile_shape[0] // _TOKENS_ALONG_2D_SIDE,
            attention_width=96,
            head_dim=64,
            activation=spec.activation,
        )
    )
    if size == "full":
        return sizes
    return replace(
        sizes,
        unet_width=8,
        vnet_width=8,
        token_side=8 if spec.dim == 3 else sizes.token_side,
        attention_width=32,
        heads=4,
        head_dim=16,
        mlp_hidden=128,
        head_widths=(8, 16, 32, 16, 8),
    )


@dataclass(frozen=True, eq=False)
class _Setup:
    """Everything of a run, ready to start."""

    plan: TrainingPlan
    prepared: PreparedSet
    batches: ShareOfWorker
    validation: tuple[SampleFile, ...]
    validate: Validate | None

    @classmethod
    def of(cls, options: RunOptions, folder: Path, workers: Workers) -> _Setup:
        spec = _chosen_spec(options)
        entries = find_cases(options.data, spec, options.labelled)
        prepared = prepare_cases(entries, spec, folder.parent / "prepared", skip_bad_cases=options.skip_bad_cases)
        validation = _validation_cases(prepared, options)
        plan = _plan(options, spec, validation)
        batches = SampleBatches(
            prepared,
            spec,
            workers=workers.count,
            labels_alone=options.method == "none",
            zero_padding=options.mode == "compat",
        )
        model = ModelSpec.model_validate(plan.model_spec)
        return cls(
            plan=plan,
            prepared=prepared,
            batches=ShareOfWorker(batches, workers),
            validation=validation,
            validate=_validator(validation, model) if validation else None,
        )


def _chosen_spec(options: RunOptions) -> DatasetSpec:
    """The data set's description with what the user chose otherwise."""
    spec = load_dataset_spec(options.spec_name)
    chosen = {"batch_size": options.batch_size, "seed": options.seed}
    # The sampler checks the size of the batch.
    return spec.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _plan(options: RunOptions, spec: DatasetSpec, validation: Sequence[SampleFile]) -> TrainingPlan:
    whole = options.method in ("upg", "mean")
    return TrainingPlan(
        trio=trio_for(spec, options.size),
        method=MethodConfig(
            total_steps=options.steps,
            mode=options.mode,
            use_ccp=whole,
            use_mixing=whole,
            pseudo_labels=options.method,
            largest_component=options.largest_component,
        ),
        optimisation=Optimisation(
            accumulate=options.accumulate, average_decay=0.99 if options.method == "teacher" else None
        ),
        steps=options.steps,
        stop_after=options.stop_after,
        seed=spec.seed,
        precision=options.precision,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
        model_spec=_model_spec(spec, options, _chosen_on(validation, options)),
    )


def _chosen_on(validation: Sequence[SampleFile], options: RunOptions) -> str:
    """On which list the whole schedule chooses its weights, for the manifest: scores on that list are too good.

    Part of what a run is continued by, so that it does not depend on where the run stops.
    """
    if not validation or options.steps < options.validate_every:
        return NOT_CHOSEN
    return "the test list, as upstream does" if validation[0].split == "test" else "the validation list"


def _model_spec(spec: DatasetSpec, options: RunOptions, chosen_on: str) -> dict[str, object]:
    """What the checkpoint says of the model; the licence of the weights is for their maker to state."""
    fields = spec.model_fields_of()
    provenance = fields["provenance"]
    assert isinstance(provenance, dict)  # noqa: S101  (as `model_fields_of` says)
    return fields | {
        "name": spec.name,
        "version": "0.1.0",
        "licence": "not stated",
        "intended_use": "Research. Not for clinical use.",
        "default_precision": "f32",
        "provenance": provenance
        | {
            "method": f"UC-Seg, mode {options.mode}, pseudo-labels {options.method}",
            "weights_chosen_on": chosen_on,
        },
        "quality": [],
    }


def _validation_cases(prepared: PreparedSet, options: RunOptions) -> tuple[SampleFile, ...]:
    """The cases on which weights are chosen: never those of the test, but in compat, where upstream does so for LA."""
    if not options.validate_every:
        return ()
    if found := prepared.of("val"):
        return found
    if options.mode == "compat" and (found := prepared.of("test")):
        _LOG.warning("weights are chosen on the test list, as upstream does: its scores will be too good")
        return found
    raise InputError(
        "the data set has no validation cases, on which the weights are to be chosen.",
        hint="Give some training cases the split 'val', or use --validate-every 0 to keep the last weights.",
    )


def _validator(cases: Sequence[SampleFile], model: ModelSpec) -> Validate:
    def mean_dice(net: DualNet) -> float:
        scorable = Scorable(net, model)
        rows = [
            row
            for case in cases
            for row in evaluate_sample(scorable, case.load(), model.preprocessing.spacing_mm, ["fused"])
        ]
        defined = [row.scores["dice"] for row in rows if row.scores["dice"] == row.scores["dice"]]
        return statistics.fmean(defined) if defined else 0.0

    return mean_dice


def _steps_done(folder: Path) -> int:
    path = folder / STATE_NAME
    return load_training_state(path).step if path.is_file() else 0
