"""``ucseg batch``."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucseg_runtime.cli.options import (
    AllowGapsOption,
    DeviceOption,
    FailOnOption,
    GateOption,
    JsonOption,
    ModelOption,
    ModeOption,
    OutOption,
    PrecisionOption,
    SkipAirOption,
    SubnetAgreementOption,
    ThreadsOption,
)
from ucseg_runtime.cli.output_options import (
    CompressionOption,
    NiftiOption,
    NrrdOption,
    OutputArguments,
    PreviewOption,
    ReportOption,
    RtstructOption,
    SegTypeOption,
    UncertaintyOption,
    ViewerOption,
)
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.cli.runner_options import (
    ActorCpusOption,
    ActorGpusOption,
    ActorsOption,
    LanesOption,
    RayAddressOption,
    RunnerArguments,
    RunnerOption,
)
from ucseg_runtime.cli.segment import require_decided
from ucseg_runtime.cli.server_options import (
    EngineOrServerOption,
    ServerArguments,
    SharedMemoryOption,
    TimeoutOption,
    TlsAuthoritiesOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
    TritonModeOption,
    UrlOption,
    split_engine,
)
from ucseg_runtime.config import FailOn, InferenceOptions, InputOptions
from ucseg_runtime.errors import EXIT_SOME_FAILED
from ucseg_runtime.server_options import TlsFiles

if TYPE_CHECKING:
    from ucseg_runtime.batch.export_index import ExportIndex
    from ucseg_runtime.batch.forecast import Forecast
    from ucseg_runtime.batch.plan import BatchPlan, Belief, SeriesOutcome, Shard
    from ucseg_runtime.batch.runners import Runner
    from ucseg_runtime.decision import Outcome
    from ucseg_runtime.manifest import SegmentClass

ExportArgument = Annotated[Path, typer.Argument(help="Folder of the export, or one zip archive.", show_default=False)]
NamingOption = Annotated[
    Literal["pseudonym", "uid"], typer.Option("--names", help="How folders of results are called.")
]
ShardOption = Annotated[
    str, typer.Option("--shard", help="i/n: every n-th series, beginning with the i-th; for runners side by side.")
]
RedoOption = Annotated[bool, typer.Option("--redo", help="Segment again what is done.")]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Read every input of what is done, and segment again where a byte differs.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run, how long and how large; do nothing.")
]
SettleOption = Annotated[
    float, typer.Option("--settle", min=0.0, help="Leave series alone that changed less than this many seconds ago.")
]
LeaseOption = Annotated[
    float, typer.Option("--lease", min=1.0, help="Seconds after which a silent runner elsewhere counts as gone.")
]


def batch(
    export: ExportArgument,
    out: OutOption,
    model: ModelOption = None,
    names: NamingOption = "pseudonym",
    shard: ShardOption = "1/1",
    dry_run: DryRunOption = False,
    redo: RedoOption = False,
    verify: VerifyOption = False,
    settle: SettleOption = 0.0,
    lease: LeaseOption = 300.0,
    engine: EngineOrServerOption = "auto",
    precision: PrecisionOption = "auto",
    gate: GateOption = True,
    viewer: ViewerOption = "any",
    seg_type: SegTypeOption = None,
    compression: CompressionOption = None,
    uncertainty: UncertaintyOption = "pm",
    rtstruct: RtstructOption = False,
    nifti: NiftiOption = False,
    nrrd: NrrdOption = False,
    preview: PreviewOption = False,
    report: ReportOption = False,
    allow_gaps: AllowGapsOption = 0,
    threads: ThreadsOption = 0,
    skip_air: SkipAirOption = True,
    mode: ModeOption = "auto",
    subnet_agreement: SubnetAgreementOption = False,
    fail_on: FailOnOption = None,
    device: DeviceOption = 0,
    url: UrlOption = None,
    triton_mode: TritonModeOption = "tile",
    timeout: TimeoutOption = 0.0,
    shared_memory: SharedMemoryOption = False,
    tls_ca: TlsAuthoritiesOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenFileOption = None,
    lanes: LanesOption = 1,
    runner: RunnerOption = "local",
    ray_address: RayAddressOption = "auto",
    actors: ActorsOption = 0,
    actor_cpus: ActorCpusOption = 2.0,
    actor_gpus: ActorGpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Segment every series of an export that fits the model; run again, and only what is missing or changed is done.

    Exit code 7 says that some series failed; they are in failures.csv, and the next run tries them again. With
    --fail-on and no failure it tells the worst decision over all series that are done, those of earlier runs too.
    """
    with reported(as_json):
        chosen = RunnerArguments(runner, ray_address, actors, actor_cpus, actor_gpus, lanes)
        from ucseg_runtime.batch.export_index import index_export
        from ucseg_runtime.batch.forecast import forecast
        from ucseg_runtime.batch.plan import BatchOptions, check_folders, plan_batch
        from ucseg_runtime.batch.summary import decided
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_runtime.report.batch_report import check_index

        share = _shard(shard)
        tls = TlsFiles(tls_ca, tls_cert, tls_key)
        local, server = split_engine(
            engine, ServerArguments(url or [], triton_mode, timeout, shared_memory, tls, token_file)
        )
        inference = InferenceOptions(
            engine=local,
            precision=precision,
            gate=gate,
            threads=threads,
            device=device,
            skip_air=skip_air,
            mode=mode,
            subnet_agreement=subnet_agreement,
            server=server and server.beginning_with(share.index - 1),
        )
        outputs = OutputArguments(viewer, seg_type, compression, uncertainty).options(
            {"rtstruct": rtstruct, "nifti": nifti, "nrrd": nrrd, "preview": preview, "report": report}
        )
        believed = _belief(redo=redo, verify=verify)
        options = BatchOptions(names, share, believed, settle, lease, InputOptions(allow_gaps=allow_gaps))
        check_folders(export, out)
        if report:
            check_index(out)
        loaded = load_model(model or default_model_folder())
        require_decided(loaded.manifest, fail_on)
        who = RunnerArguments("local") if dry_run else chosen
        progress = _Progress(quiet=as_json)
        with who.opened(loaded, inference, outputs, export, out) as opened:
            index = index_export(export, progress.indexed)
            plan = plan_batch(index, out, loaded, inference, outputs, options, opened.engine())
            if dry_run:
                _show_forecast(forecast(plan, loaded, inference, outputs), as_json)
                return
            progress.begin(plan)
            outcomes = _segmented(plan, opened, progress, loaded.manifest.classes, shard=shard, page_wanted=report)
        decisions = decided(outcomes)
        _show_outcomes(outcomes, index, out, decisions, as_json)
        _exit_by_outcomes(outcomes, index, decisions, fail_on)


def _segmented(
    plan: BatchPlan,
    runner: Runner,
    progress: _Progress,
    classes: tuple[SegmentClass, ...],
    *,
    shard: str,
    page_wanted: bool,
) -> list[SeriesOutcome]:
    """What became of every series. Tables and page are written of what is known, also where a run ends early.

    Raises:
        UcsegError: See `run_batch`.
    """
    from ucseg_runtime.batch.run import run_batch

    outcomes: list[SeriesOutcome] = []

    def take(outcome: SeriesOutcome) -> None:
        outcomes.append(outcome)
        progress.told(outcome)

    try:
        run_batch(plan, runner, take)
    finally:
        if outcomes:
            _write_tables(plan, outcomes, classes, shard=shard)
            _renew_index(plan.places.out, wanted=page_wanted)
    return outcomes


def _exit_by_outcomes(
    outcomes: list[SeriesOutcome], index: ExportIndex, decisions: Counter[Outcome], fail_on: FailOn | None
) -> None:
    """Say by the exit code that series failed, or else what the worst decision is.

    Raises:
        Exit: Something is to be said.
    """
    from ucseg_runtime.decision import exit_code

    if index.unreadable or any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(EXIT_SOME_FAILED)
    if code := exit_code(decisions.elements(), fail_on):
        raise typer.Exit(code)


def _renew_index(out: Path, *, wanted: bool) -> None:
    """Write the page of the batch if it is wanted, and anew if one is there."""
    from ucseg_runtime.report.batch_report import INDEX, is_index, write_index

    if wanted or is_index(out / INDEX):
        page = write_index(out)
        typer.echo(f"open in a browser: {page}", err=True)


def _shard(text: str) -> Shard:
    from ucseg_runtime.batch.plan import Shard

    index, separator, count = text.partition("/")
    if separator and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count):
        return Shard(int(index), int(count))
    raise typer.BadParameter("--shard must be i/n with 1 <= i <= n, such as 2/8.")


def _belief(*, redo: bool, verify: bool) -> Belief:
    if redo and verify:
        raise typer.BadParameter("--redo segments everything again; with it there is nothing to verify.")
    if redo:
        return "nothing"
    return "bytes" if verify else "records"


class _Progress:
    """Lines on standard error: what was indexed, then one for each series, with rate and time left."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._series = self._told = self._segmented = 0
        self._begun = time.monotonic()

    def indexed(self, files: int) -> None:
        """So many files were looked at."""
        if files % 10_000 == 1 and files > 1:
            self._say(f"looked at {files - 1} files")

    def begin(self, plan: BatchPlan) -> None:
        """The plan is made."""
        self._series = len(plan.series) + len(plan.unsuitable)
        self._begun = time.monotonic()
        self._say(f"{len(plan.index.names)} files, {self._series} series, {len(plan.series)} of the model's modality")
        for (code, reason), files in sorted(plan.index.skipped.items()):
            self._say(f"{files} files left out: {code} {reason}")
        if plan.index.unreadable:
            self._say(f"{plan.index.unreadable} files or folders could not be read, and may hold more series.")

    def told(self, outcome: SeriesOutcome) -> None:
        """It is known what became of a series."""
        self._told += 1
        if outcome.state == "done":
            return
        self._segmented += outcome.state == "segmented"
        line = f"series {self._told} of {self._series}: {outcome.state}"
        if outcome.reason:
            line += f": {outcome.code} {outcome.reason}"
        if self._segmented:
            each = (time.monotonic() - self._begun) / self._segmented
            left = each * (self._series - self._told)
            line += f" ({3600.0 / each:.0f} series/h, at most {left / 60.0:.0f} min left)"
        self._say(line)

    def _say(self, line: str) -> None:
        if not self._quiet:
            typer.echo(line, err=True)


def _write_tables(
    plan: BatchPlan, outcomes: list[SeriesOutcome], classes: tuple[SegmentClass, ...], *, shard: str
) -> None:
    """The tables of this runner: with several side by side, each has its own."""
    from ucseg_runtime.batch.summary import FAILURES, SUMMARY, failure_rows, summary_rows, write_csv

    suffix = "" if shard == "1/1" else f"-{shard.replace('/', '-of-')}"
    summary = summary_rows(outcomes, plan.places, classes)
    if summary:
        write_csv(plan.places.out / SUMMARY.replace(".", f"{suffix}."), list(summary[0]), summary)
    failures = failure_rows(outcomes, plan.places)
    write_csv(
        plan.places.out / FAILURES.replace(".", f"{suffix}."), ("study", "series", "state", "code", "reason"), failures
    )


def _show_outcomes(
    outcomes: list[SeriesOutcome], index: ExportIndex, out: Path, decisions: Counter[Outcome], as_json: bool
) -> None:
    counts = Counter(outcome.state for outcome in outcomes)
    if as_json:
        rows = [
            {
                "series_uid": outcome.series.series_uid,
                "state": outcome.state,
                "folder": str(outcome.folder.relative_to(out)),
                "code": outcome.code,
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ]
        left_out = [
            {"files": files, "code": code, "reason": reason} for (code, reason), files in sorted(index.skipped.items())
        ]
        states = {str(state): count for state, count in counts.items()}
        print_json(
            {
                "counts": states,
                "decisions": dict(decisions),
                "series": rows,
                "left_out": left_out,
                "unreadable": index.unreadable,
            }
        )
        return
    print_table(
        f"results in {out}",
        ("series", "number"),
        [
            *((state, str(count)) for state, count in counts.items()),
            *((f"decision: {outcome}", str(count)) for outcome, count in decisions.items()),
        ],
    )


def _show_forecast(found: Forecast, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
        return
    rows = [
        (item.name, item.state, f"{item.seconds:.0f}", f"{item.megabytes:.0f}", item.reason) for item in found.series
    ]
    print_table("what would run", ("series", "state", "s", "MB", "why"), rows)
    typer.echo(
        f"{found.to_run} of {len(found.series)} series, about {found.seconds / 60.0:.0f} min one after the other, "
        f"at most {found.megabytes:.0f} MB."
    )
