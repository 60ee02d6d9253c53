"""``ucseg segment``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ucseg_runtime.cache import compiled_models_folder
from ucseg_runtime.cli.options import (
    AllowGapsOption,
    CacheOption,
    ChooseOption,
    DeviceOption,
    ExcludeOption,
    ExpectInstancesOption,
    FailOnOption,
    GateOption,
    GpuMemoryOption,
    InputsArgument,
    JsonOption,
    MaxMemoryOption,
    ModelOption,
    ModeOption,
    OutOption,
    OverwriteOption,
    PrecisionOption,
    SecondLookOption,
    SeriesOption,
    SkipAirOption,
    SubnetAgreementOption,
    ThreadsOption,
    VolumeOption,
    series_rules,
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
from ucseg_runtime.cli.pacs_options import ArchiveArguments, ArchiveBasicOption, ArchiveCaOption, ArchiveTokenOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported, tile_progress
from ucseg_runtime.cli.server_options import (
    EngineOrServerOption,
    ServerArguments,
    SharedMemoryOption,
    TimeoutOption,
    TlsAuthoritiesOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
    TraceOption,
    TritonModeOption,
    UrlOption,
    split_engine,
)
from ucseg_runtime.config import FailOn, InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.errors import EXIT_SOME_FAILED
from ucseg_runtime.server_options import TlsFiles

if TYPE_CHECKING:
    from ucseg_runtime.decision import Decision
    from ucseg_runtime.manifest import Manifest
    from ucseg_runtime.neighbours import Outcome
    from ucseg_runtime.segmentation import SegmentMeasurement
    from ucseg_runtime.series_steps import SeriesResult
    from ucseg_runtime.timeline import ClipMeasurement

_REASONS_SHOWN = 5


def segment(
    input: InputsArgument,  # noqa: A002  (the word on the command line)
    out: OutOption,
    model: ModelOption = None,
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
    series: SeriesOption = None,
    volume: VolumeOption = 0,
    allow_gaps: AllowGapsOption = 0,
    expect_instances: ExpectInstancesOption = 0,
    choose: ChooseOption = None,
    exclude: ExcludeOption = None,
    threads: ThreadsOption = 0,
    skip_air: SkipAirOption = True,
    mode: ModeOption = "auto",
    subnet_agreement: SubnetAgreementOption = False,
    fail_on: FailOnOption = None,
    second_look: SecondLookOption = False,
    max_memory: MaxMemoryOption = 0,
    cache: CacheOption = False,
    device: DeviceOption = 0,
    gpu_memory_mb: GpuMemoryOption = 0,
    overwrite: OverwriteOption = False,
    url: UrlOption = None,
    triton_mode: TritonModeOption = "tile",
    timeout: TimeoutOption = 0.0,
    shared_memory: SharedMemoryOption = False,
    tls_ca: TlsAuthoritiesOption = None,
    tls_cert: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenFileOption = None,
    trace: TraceOption = False,
    archive_ca: ArchiveCaOption = None,
    archive_token_file: ArchiveTokenOption = None,
    archive_basic_file: ArchiveBasicOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment one series: DICOM SEG, uncertainty map, report and picture in the folder given with --out.

    Of several inputs one series each is segmented, with results in the folders 1, 2, … of --out, in the order of the
    inputs; exit code 7 says that some of them failed. With --fail-on the exit code tells the worst decision.
    """
    if len(input) > 1:
        _refuse_options_for_one_input(series, expect_instances, max_memory)
    if second_look and max_memory:
        raise typer.BadParameter("what it takes is not predicted for --second-look", param_hint="--max-memory")
    rules = series_rules(choose, exclude)
    outputs = OutputArguments(viewer, seg_type, compression, uncertainty, overwrite).options(
        {"rtstruct": rtstruct, "nifti": nifti, "nrrd": nrrd, "preview": preview, "report": report}
    )
    with reported(as_json):
        tls = TlsFiles(tls_ca, tls_cert, tls_key)
        local, server = split_engine(
            engine, ServerArguments(url or [], triton_mode, timeout, shared_memory, tls, token_file, trace)
        )
        inference = InferenceOptions(
            engine=local,
            precision=precision,
            gate=gate,
            threads=threads,
            device=device,
            gpu_memory_mb=gpu_memory_mb,
            skip_air=skip_air,
            mode=mode,
            subnet_agreement=subnet_agreement,
            second_look=second_look,
            max_memory_mb=max_memory,
            cache_folder=compiled_models_folder() if cache else None,
            server=server,
        )
        wanted = InputOptions(series, volume, allow_gaps, expect_instances, rules)
        archive = ArchiveArguments(ca=archive_ca, token=archive_token_file, basic=archive_basic_file)
        with _local(input, archive) as sources:
            if len(sources) == 1:
                run_and_report(sources[0], out, model, inference, outputs, wanted, as_json, fail_on)
            else:
                _run_many_and_report(sources, out, model, inference, outputs, wanted, as_json, fail_on)


@contextmanager
def _local(inputs: Sequence[str], archive: ArchiveArguments) -> Iterator[tuple[Path, ...]]:
    """The inputs as paths; one that lies in an archive is fetched, and deleted again.

    Raises:
        typer.BadParameter: A URL names no series, or is one of several inputs.
    """
    from ucseg_runtime.pacs.addresses import is_web, web_resource
    from ucseg_runtime.pacs.remote_input import fetched

    if not any(map(is_web, inputs)):
        yield tuple(map(Path, inputs))
        return
    if len(inputs) > 1:
        raise typer.BadParameter("a URL has to be the only input; for many see ucseg pacs fetch.", param_hint="INPUT")
    try:
        resource = web_resource(inputs[0])
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="INPUT") from error
    with fetched(resource, archive.connection()) as folder:
        yield (folder,)


def run_and_report(
    source: Path,
    out: Path,
    model: Path | None,
    inference: InferenceOptions,
    outputs: OutputOptions,
    wanted: InputOptions,
    as_json: bool,
    fail_on: FailOn | None = None,
) -> None:
    """Segment and print the summary. Raises what `segment_series` raises, and Exit for what `fail_on` says."""
    from ucseg_runtime.model_folder import default_model_folder, load_model
    from ucseg_runtime.series_pipeline import segment_series

    loaded = load_model(model or default_model_folder())
    require_decided(loaded.manifest, fail_on)
    with tile_progress(quiet=as_json) as progress:
        result = segment_series(source, out, loaded, inference, outputs, wanted, progress)
    if as_json:
        print_json(_as_json(result))
    else:
        _print_summary(result)
    _exit_by_decision([result], fail_on)


def require_decided(manifest: Manifest, fail_on: FailOn | None) -> None:
    """Nobody who relies on decisions shall go without them.

    Raises:
        typer.BadParameter: The model is for pictures and clips, which are not decided upon.
    """
    if fail_on is not None and manifest.image_kind == "frames":
        raise typer.BadParameter("results of pictures and clips are not decided upon.", param_hint="--fail-on")


def _exit_by_decision(results: Iterable[SeriesResult], fail_on: FailOn | None) -> None:
    from ucseg_runtime.decision import exit_code

    outcomes = [result.decision.outcome for result in results if result.decision is not None]
    if code := exit_code(outcomes, fail_on):
        raise typer.Exit(code)


def _refuse_options_for_one_input(series_uid: str | None, expect_instances: int, max_memory_mb: int) -> None:
    if series_uid is not None:
        raise typer.BadParameter("--series is for one input; it names a series of it.")
    if expect_instances:
        raise typer.BadParameter("--expect-instances is for one input.")
    if max_memory_mb:
        raise typer.BadParameter("--max-memory is for one input; neighbouring studies share the memory.")


def _run_many_and_report(
    sources: Sequence[Path],
    out: Path,
    model: Path | None,
    inference: InferenceOptions,
    outputs: OutputOptions,
    wanted: InputOptions,
    as_json: bool,
    fail_on: FailOn | None,
) -> None:
    """Segment all inputs and print one row each. Folders are numbered, since names can hold patient data.

    Raises:
        Exit: Some inputs failed, or a decision is as bad as `fail_on`.
        UcsegError: See `segment_neighbours`.
    """
    from ucseg_runtime.model_folder import default_model_folder, load_model
    from ucseg_runtime.neighbours import Refused, SeriesJob, segment_neighbours

    loaded = load_model(model or default_model_folder())
    require_decided(loaded.manifest, fail_on)
    outcomes: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if not as_json:
            typer.echo(f"study {outcome.ordinal} of {len(sources)}: {_in_words(outcome)}", err=True)

    jobs = (SeriesJob(source, out / str(number), wanted) for number, source in enumerate(sources, start=1))
    segment_neighbours(jobs, loaded, inference, outputs, report)
    if as_json:
        print_json([_outcome_as_json(outcome) for outcome in outcomes])
    else:
        print_table(
            f"results in {out}", ("study", "outcome", "decision", "segments"), [_row(outcome) for outcome in outcomes]
        )
    if any(isinstance(outcome, Refused) for outcome in outcomes):
        raise typer.Exit(EXIT_SOME_FAILED)
    _exit_by_decision([outcome.result for outcome in outcomes if not isinstance(outcome, Refused)], fail_on)


def _in_words(outcome: Outcome) -> str:
    from ucseg_runtime.neighbours import Refused

    if isinstance(outcome, Refused):
        return f"{outcome.error.code} {type(outcome.error).__name__}: {outcome.error}"
    notes = (*outcome.result.found.notes, *outcome.result.notes)
    return "; ".join(["done", *notes, *outcome.result.found.left_out()])


def _row(outcome: Outcome) -> tuple[str, str, str, str]:
    from ucseg_runtime.neighbours import Refused

    if isinstance(outcome, Refused):
        return str(outcome.ordinal), f"{outcome.error.code} {type(outcome.error).__name__}", "", ""
    decision = outcome.result.decision
    segments = ", ".join(map(_segment_in_words, outcome.result.measurements))
    return str(outcome.ordinal), "done", "" if decision is None else decision.in_words, segments


def _segment_in_words(item: SegmentMeasurement | ClipMeasurement) -> str:
    from ucseg_runtime.segmentation import SegmentMeasurement

    if isinstance(item, SegmentMeasurement):
        return f"{item.name} {item.volume_ml:.1f} ml"
    return f"{item.name} in {item.frames} frames"


def _outcome_as_json(outcome: Outcome) -> dict[str, object]:
    from ucseg_runtime.neighbours import Refused

    if isinstance(outcome, Refused):
        return {"study": outcome.ordinal, "error": outcome.error.as_json()}
    return {"study": outcome.ordinal, **_as_json(outcome.result)}


def _print_summary(result: SeriesResult) -> None:
    for note in (*result.found.notes, *result.notes, *result.found.left_out()):
        typer.echo(f"note: {note}", err=True)
    engine = result.engine
    title = f"{result.found.name}, {engine.name} {engine.precision}, {sum(result.seconds.values()):.1f} s"
    print_table(title, *_segment_table(result))
    if result.decision is not None:
        for line in _decision_lines(result.decision):
            typer.echo(line)
    typer.echo(f"written to {result.folder}: {', '.join(result.files)}")


def _decision_lines(decision: Decision) -> list[str]:
    """The decision and its first reasons."""
    shown, more = decision.reasons[:_REASONS_SHOWN], len(decision.reasons) - _REASONS_SHOWN
    lines = [f"decision: {decision.in_words}", *(f"  {reason.text}" for reason in shown)]
    return [*lines, f"  {more} more in record.json"] if more > 0 else lines


def _segment_table(result: SeriesResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row for each segment."""
    from ucseg_runtime.segmentation import SegmentMeasurement

    rows: list[tuple[str, ...]] = []
    header: tuple[str, ...] = ("segment", "frames", "largest area px", "largest area mm²", "uncertainty mean")
    for item in result.measurements:
        if isinstance(item, SegmentMeasurement):
            header = ("segment", "volume ml", "interval ml", "diameter mm", "uncertainty mean", "95 %")
            rows.append((item.name, f"{item.volume_ml:.1f}", _interval(item), *_if_found(item)))
        else:
            area = "–" if math.isnan(item.largest_area_mm2) else f"{item.largest_area_mm2:.1f}"
            mean = "–" if math.isnan(item.mean_uncertainty) else f"{item.mean_uncertainty:.3f}"
            rows.append((item.name, str(item.frames), str(item.largest_area_px), area, mean))
    return header, rows


def _interval(item: SegmentMeasurement) -> str:
    if item.volume_interval_ml is None:
        return "–"
    low, high = item.volume_interval_ml
    coverage = item.volume_interval_coverage
    return f"{low:.1f} – {high:.1f} ({'uncalibrated' if coverage is None else f'{coverage:.0%}'})"


def _if_found(item: SegmentMeasurement) -> tuple[str, str, str]:
    if not item.voxels:
        return "–", "–", "–"
    return f"{item.largest_diameter_mm:.1f}", f"{item.mean_uncertainty:.3f}", f"{item.uncertainty_p95:.3f}"


def _as_json(result: SeriesResult) -> dict[str, object]:
    return {
        **result.found.as_json(),
        "notes": [*result.found.notes, *result.notes],
        "engine": {**asdict(result.engine), "reason": result.engine_reason},
        "measurements": [asdict(item) for item in result.measurements],
        "decision": None if result.decision is None else result.decision.as_json(),
        "files": list(result.files),
        "seconds": result.seconds,
    }
