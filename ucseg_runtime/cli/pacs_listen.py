"""``ucseg pacs listen``."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucseg_runtime.cli.options import (
    AllowGapsOption,
    DeviceOption,
    GateOption,
    ModelOption,
    ModeOption,
    PrecisionOption,
    SkipAirOption,
    SubnetAgreementOption,
    ThreadsOption,
)
from ucseg_runtime.cli.output_options import (
    CompressionOption,
    OutputArguments,
    PreviewOption,
    RtstructOption,
    SegTypeOption,
    UncertaintyOption,
    ViewerOption,
)
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
    address,
    default_spool,
    host_and_port,
    title,
)
from ucseg_runtime.cli.reporting import reported
from ucseg_runtime.cli.server_options import (
    EngineOrServerOption,
    ServerArguments,
    TimeoutOption,
    TritonModeOption,
    UrlOption,
    split_engine,
)
from ucseg_runtime.config import InferenceOptions, InputOptions

if TYPE_CHECKING:
    from ucseg_runtime.pacs.access import Access

_RECEIVING, _SPOOL = "Receiving", "Spool"
_GIGABYTE = 10**9
_MONITOR = "127.0.0.1:11180"

ForwardOption = Annotated[
    str,
    typer.Option(
        "--forward",
        metavar="ARCHIVE",
        help="Who gets the results: AET@HOST:PORT, or dicomweb+https://HOST/ROOT.",
        show_default=False,
    ),
]
ListenTitleOption = Annotated[
    str, typer.Option("--aet", help="Our AE title; callers have to name it.", rich_help_panel=_RECEIVING)
]
HostOption = Annotated[
    str, typer.Option("--host", help="Address to listen at; all when not given.", rich_help_panel=_RECEIVING)
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port.", rich_help_panel=_RECEIVING)]
AllowTitleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-aet",
        help="AE title that may send; any number of times. All when not given.",
        show_default=False,
        rich_help_panel=_RECEIVING,
    ),
]
AllowAddressOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-address",
        help="Address or network that may send, such as 10.1.0.0/16; any number of times. All when not given.",
        show_default=False,
        rich_help_panel=_RECEIVING,
    ),
]
ServiceCertOption = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="PEM certificate of this service: it speaks TLS.", rich_help_panel=_RECEIVING),
]
ServiceKeyOption = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM key of --tls-cert.", rich_help_panel=_RECEIVING)
]
ServiceCaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        help="PEM file of who has signed the certificates of callers, who then must have one.",
        rich_help_panel=_RECEIVING,
    ),
]
QuietOption = Annotated[
    float,
    typer.Option(
        "--quiet-time",
        min=0.1,
        help="Seconds without a new image after which a series can be complete.",
        rich_help_panel=_RECEIVING,
    ),
]
LongestOption = Annotated[
    float,
    typer.Option(
        "--longest-wait",
        min=0.0,
        help="Seconds to wait for images of a series that the archive has and that do not come.",
        rich_help_panel=_RECEIVING,
    ),
]
CountOption = Annotated[
    str,
    typer.Option(
        "--count-from",
        metavar="ARCHIVE",
        help="Who is asked how many images a series has: an archive; forward: that of --forward; nobody.",
        rich_help_panel=_RECEIVING,
    ),
]
SpoolOption = Annotated[
    Path | None,
    typer.Option(
        "--spool",
        help="Folder for what is to be done; ucseg/spool in the user's folder for state.",
        show_default=False,
        rich_help_panel=_SPOOL,
    ),
]
LimitOption = Annotated[
    float,
    typer.Option(
        "--spool-limit", min=0.001, help="Most GB that the spool takes; more is refused.", rich_help_panel=_SPOOL
    ),
]
FreeOption = Annotated[
    float, typer.Option("--keep-free", min=0.0, help="GB that stay free on its disk.", rich_help_panel=_SPOOL)
]
MonitorOption = Annotated[
    str,
    typer.Option("--monitor", metavar="HOST:PORT", help="Where /healthz, /readyz and /metrics are; off for nowhere."),
]


def listen(
    forward: ForwardOption,
    aet: ListenTitleOption = "UCSEG",
    host: HostOption = "",
    port: PortOption = 11112,
    allow_aet: AllowTitleOption = None,
    allow_address: AllowAddressOption = None,
    tls_cert: ServiceCertOption = None,
    tls_key: ServiceKeyOption = None,
    tls_ca: ServiceCaOption = None,
    quiet_time: QuietOption = 60.0,
    longest_wait: LongestOption = 1800.0,
    count_from: CountOption = "forward",
    spool: SpoolOption = None,
    spool_limit: LimitOption = 50.0,
    keep_free: FreeOption = 1.0,
    monitor: MonitorOption = _MONITOR,
    archive_tls: ArchiveTlsOption = False,
    archive_ca: ArchiveCaOption = None,
    archive_cert: ArchiveCertOption = None,
    archive_key: ArchiveKeyOption = None,
    archive_token_file: ArchiveTokenOption = None,
    archive_basic_file: ArchiveBasicOption = None,
    connect_timeout: ConnectOption = 10.0,
    answer_timeout: AnswerOption = 60.0,
    model: ModelOption = None,
    engine: EngineOrServerOption = "auto",
    precision: PrecisionOption = "auto",
    gate: GateOption = True,
    viewer: ViewerOption = "any",
    seg_type: SegTypeOption = None,
    compression: CompressionOption = None,
    uncertainty: UncertaintyOption = "pm",
    rtstruct: RtstructOption = False,
    preview: PreviewOption = False,
    allow_gaps: AllowGapsOption = 0,
    threads: ThreadsOption = 0,
    skip_air: SkipAirOption = True,
    mode: ModeOption = "auto",
    subnet_agreement: SubnetAgreementOption = False,
    device: DeviceOption = 0,
    url: UrlOption = None,
    triton_mode: TritonModeOption = "tile",
    timeout: TimeoutOption = 0.0,
) -> None:
    """Receive series by C-STORE, segment them, and send the results to an archive, until it is stopped.

    What is not done when it is stopped or killed is done after the next start.
    """
    outputs = OutputArguments(viewer, seg_type, compression, uncertainty).options(
        {"rtstruct": rtstruct, "preview": preview}
    )
    with reported(as_json=False):
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_runtime.pacs.arrivals import Patience
        from ucseg_runtime.pacs.reception import ReceptionOptions
        from ucseg_runtime.pacs.segmenting import Method
        from ucseg_runtime.pacs.service import ListenOptions
        from ucseg_runtime.pacs.service import listen as listen_until_stopped

        local, server = split_engine(engine, ServerArguments(url or [], triton_mode, timeout))
        inference = InferenceOptions(
            engine=local,
            precision=precision,
            gate=gate,
            threads=threads,
            device=device,
            skip_air=skip_air,
            mode=mode,
            subnet_agreement=subnet_agreement,
            server=server,
        )
        archive = ArchiveArguments(
            aet, archive_tls, archive_ca, archive_cert, archive_key, archive_token_file, archive_basic_file,
            connect_timeout, answer_timeout,
        )  # fmt: skip
        target = address(forward, "--forward")
        asked = {"forward": target, "nobody": None}
        options = ListenOptions(
            forward=target,
            spool=spool or default_spool(),
            limit_bytes=int(spool_limit * _GIGABYTE),
            free_bytes=int(keep_free * _GIGABYTE),
            patience=Patience(quiet_time, longest_wait),
            count_from=asked[count_from] if count_from in asked else address(count_from, "--count-from"),
            connection=archive.connection(),
            reception=ReceptionOptions(
                title=title(aet),
                host=host,
                port=port,
                access=_access(allow_aet or [], allow_address or []),
                tls=_service_tls(tls_cert, tls_key, tls_ca),
            ),
            monitor=None if monitor == "off" else host_and_port(monitor, "--monitor"),
        )
        method = Method(
            load_model(model or default_model_folder()), inference, outputs, InputOptions(allow_gaps=allow_gaps)
        )
        listen_until_stopped(options, method, _say)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _access(titles: list[str], networks: list[str]) -> Access:
    from ucseg_runtime.pacs.access import access_from_texts

    try:
        return access_from_texts(titles, networks)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--allow-aet, --allow-address") from error


def _service_tls(certificate: Path | None, key: Path | None, authorities: Path | None) -> ssl.SSLContext | None:
    from ucseg_runtime.pacs.dimse import server_tls

    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("TLS needs --tls-cert and --tls-key.", param_hint="--tls-cert")
    try:
        return server_tls(str(certificate), str(key), None if authorities is None else str(authorities))
    except OSError as error:
        raise typer.BadParameter(
            f"the TLS files cannot be used ({type(error).__name__}).", param_hint="--tls-cert"
        ) from error
