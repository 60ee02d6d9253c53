"""``ucseg pacs``: the commands that ask an archive once. The one that stays is in `pacs_listen`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.pacs_listen import listen
from ucseg_runtime.cli.pacs_options import (
    AnswerOption,
    ArchiveArguments,
    ArchiveBasicOption,
    ArchiveCaOption,
    ArchiveCertOption,
    ArchiveKeyOption,
    ArchiveTlsOption,
    ArchiveTokenOption,
    ConnectOption,
    TitleOption,
    address,
)
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.errors import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ucseg_runtime.pacs.archives import Archive, FoundSeries, Stored

pacs_app = typer.Typer(
    name="pacs",
    no_args_is_help=True,
    help="Work with archives (PACS): listen for series, fetch, send, query. Needs the extra 'pacs'.",
)
pacs_app.command()(listen)

_KINDS = "AET@HOST:PORT, or dicomweb+https://HOST/ROOT"

ArchiveArgument = Annotated[str, typer.Argument(metavar="ARCHIVE", help=f"{_KINDS}.", show_default=False)]
ResourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARCHIVE",
        help=f"{_KINDS}; or dicomweb+https://HOST/ROOT/studies/UID[/series/UID].",
        show_default=False,
    ),
]
PathsArgument = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Folders of results, or DICOM files.", show_default=False)
]
ToOption = Annotated[str, typer.Option("--to", metavar="ARCHIVE", help=f"{_KINDS}.", show_default=False)]
FetchedOption = Annotated[
    Path, typer.Option("--out", help="Folder for the instances; made when missing.", show_default=False)
]
GetOption = Annotated[
    Path | None,
    typer.Option("--get", help="Fetch everything that was found into this folder.", show_default=False),
]
StudyOption = Annotated[str, typer.Option("--study", help="Study Instance UID.")]
SeriesUidOption = Annotated[str, typer.Option("--series", help="Series Instance UID.")]
ModalityOption = Annotated[str, typer.Option("--modality", help="Such as CT.")]
DateOption = Annotated[
    str, typer.Option("--date", help="Study date: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD with either end left out.")
]


@pacs_app.command()
def fetch(
    archive: ResourceArgument,
    out: FetchedOption,
    study: StudyOption = "",
    series: SeriesUidOption = "",
    aet: TitleOption = "UCSEG",
    archive_tls: ArchiveTlsOption = False,
    archive_ca: ArchiveCaOption = None,
    archive_cert: ArchiveCertOption = None,
    archive_key: ArchiveKeyOption = None,
    archive_token_file: ArchiveTokenOption = None,
    archive_basic_file: ArchiveBasicOption = None,
    connect_timeout: ConnectOption = 10.0,
    answer_timeout: AnswerOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch a series or a study: by WADO-RS, or by C-GET.

    Files are called by digests of their UIDs, so that fetching again writes the same files.
    """
    arguments = ArchiveArguments(
        aet, archive_tls, archive_ca, archive_cert, archive_key, archive_token_file, archive_basic_file,
        connect_timeout, answer_timeout,
    )  # fmt: skip
    with reported(as_json):
        asked, study_uid, series_uid = _resource(archive, study, series, arguments)
        count = _fetched(asked, study_uid, series_uid, out)
        _show(f"{count} instances in {out}", {"instances": count, "folder": str(out)}, as_json)


@pacs_app.command()
def send(
    paths: PathsArgument,
    to: ToOption,
    aet: TitleOption = "UCSEG",
    archive_tls: ArchiveTlsOption = False,
    archive_ca: ArchiveCaOption = None,
    archive_cert: ArchiveCertOption = None,
    archive_key: ArchiveKeyOption = None,
    archive_token_file: ArchiveTokenOption = None,
    archive_basic_file: ArchiveBasicOption = None,
    connect_timeout: ConnectOption = 10.0,
    answer_timeout: AnswerOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM objects: by C-STORE, or by STOW-RS. Objects that the archive has already do no harm.

    Exit code 7 says that it took some and refused others, or that files were damaged.
    """
    arguments = ArchiveArguments(
        aet, archive_tls, archive_ca, archive_cert, archive_key, archive_token_file, archive_basic_file,
        connect_timeout, answer_timeout,
    )  # fmt: skip
    target = address(to, "--to")
    with reported(as_json):
        from ucseg_runtime.pacs.archives import archive_at
        from ucseg_runtime.pacs.objects import objects_below

        opened = archive_at(target, arguments.connection())
        unusable: list[str] = []
        objects = objects_below(paths, unusable.append)
        told: list[Stored] = []
        opened.store(objects, told.append)
        _show_stored(told, [item.sop_uid for item in objects], unusable, as_json)


@pacs_app.command()
def query(
    archive: ArchiveArgument,
    study: StudyOption = "",
    series: SeriesUidOption = "",
    modality: ModalityOption = "",
    date: DateOption = "",
    get: GetOption = None,
    aet: TitleOption = "UCSEG",
    archive_tls: ArchiveTlsOption = False,
    archive_ca: ArchiveCaOption = None,
    archive_cert: ArchiveCertOption = None,
    archive_key: ArchiveKeyOption = None,
    archive_token_file: ArchiveTokenOption = None,
    archive_basic_file: ArchiveBasicOption = None,
    connect_timeout: ConnectOption = 10.0,
    answer_timeout: AnswerOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Find series: by QIDO-RS, or by C-FIND; with --get fetch them: by WADO-RS, or by C-GET.

    What is shown are UIDs, modality, date and number of instances, never who the patient is.
    """
    arguments = ArchiveArguments(
        aet, archive_tls, archive_ca, archive_cert, archive_key, archive_token_file, archive_basic_file,
        connect_timeout, answer_timeout,
    )  # fmt: skip
    target = address(archive, "ARCHIVE")
    with reported(as_json):
        from ucseg_runtime.pacs.archives import SeriesFilter, archive_at

        opened = archive_at(target, arguments.connection())
        found = opened.find(SeriesFilter(_uid(study), _uid(series), modality, date))
        if get is not None:
            for number, item in enumerate(found, start=1):
                _fetched(opened, item.study_uid, item.series_uid, get / str(number))
        _show_series(found, as_json)


def _resource(text: str, study: str, series: str, arguments: ArchiveArguments) -> tuple[Archive, str, str]:
    """Whom to ask for what.

    Raises:
        typer.BadParameter: It is not said, or twice.
    """
    from ucseg_runtime.pacs.addresses import is_web, web_resource
    from ucseg_runtime.pacs.archives import archive_at

    if is_web(text) and "/studies/" in text:
        if study or series:
            raise typer.BadParameter("the URL names the study already.", param_hint="--study")
        try:
            resource = web_resource(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.", param_hint="ARCHIVE") from error
        return archive_at(resource.archive, arguments.connection()), resource.study_uid, resource.series_uid
    if not study:
        raise typer.BadParameter("say which study.", param_hint="--study")
    return archive_at(address(text, "ARCHIVE"), arguments.connection()), _uid(study), _uid(series)


def _uid(text: str) -> str:
    from ucseg_runtime.pacs.addresses import checked_uid

    try:
        return checked_uid(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from error


def _fetched(archive: Archive, study_uid: str, series_uid: str, folder: Path) -> int:
    """Fetch into a folder that only its owner can read.

    Raises:
        InputError: The archive has nothing of it.
    """
    from ucseg_runtime.errors import InputError
    from ucseg_runtime.publish import reported_as_output_error

    with reported_as_output_error():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        count = archive.fetch(study_uid, series_uid, folder)
    if not count:
        raise InputError("the archive has no instances of it.", hint="Check the UIDs.")
    return count


def _show_stored(told: Sequence[Stored], order: Sequence[str], unusable: Sequence[str], as_json: bool) -> None:
    """Say what became of each object, by its place among the files.

    Raises:
        ArchiveRefusedError: None was taken.
        Exit: Some were refused or unusable.
    """
    from ucseg_runtime.errors import ArchiveRefusedError

    place = {uid: number for number, uid in enumerate(order, start=1)}
    refused = [(place[item.item.sop_uid], item.reason) for item in told if not item.is_there]
    stored = sum(item.is_there for item in told)
    if refused and not stored:
        raise ArchiveRefusedError(refused[0][1], hint="Nothing was stored.")
    report = {
        "stored": stored,
        "refused": [{"object": number, "reason": reason} for number, reason in refused],
        "not_sent": len(order) - len(told),
        "unusable": list(unusable),
    }
    _show(f"{stored} of {len(order)} objects stored", report, as_json)
    for line in (*(f"object {number} of {len(order)}: {reason}" for number, reason in refused), *unusable):
        typer.echo(line, err=True)
    if refused or unusable:
        raise typer.Exit(EXIT_SOME_FAILED)


def _show_series(found: Sequence[FoundSeries], as_json: bool) -> None:
    if as_json:
        print_json({"series": [asdict(item) for item in found]})
        return
    rows = [
        (item.study_uid, item.series_uid, item.modality, item.study_date, str(item.instances or "")) for item in found
    ]
    print_table(f"{len(found)} series", ("study", "series", "modality", "date", "instances"), rows)


def _show(line: str, report: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        typer.echo(line)
