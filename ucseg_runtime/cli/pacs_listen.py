"""``ucseg pacs listen``."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ucseg_runtime.cli.listen_options import (
    AllowAddressOption,
    AllowTitleOption,
    CountOption,
    ForwardOption,
    FreeOption,
    HostOption,
    LimitOption,
    ListenTitleOption,
    LongestOption,
    MonitorOption,
    PortOption,
    QuietOption,
    ReportsOption,
    ServiceCaOption,
    ServiceCertOption,
    ServiceKeyOption,
    SpoolOption,
)
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
    SERVER_NAMES,
    EngineOrServerOption,
    ServerArguments,
    ServerAuthoritiesOption,
    ServerCertificateOption,
    ServerKeyOption,
    ServerTokenOption,
    SharedMemoryOption,
    TimeoutOption,
    TritonModeOption,
    UrlOption,
    split_engine,
)
from ucseg_runtime.config import InferenceOptions, InputOptions
from ucseg_runtime.server_options import TlsFiles

if TYPE_CHECKING:
    from ucseg_runtime.pacs.access import Access

_GIGABYTE = 10**9
_MONITOR = "127.0.0.1:11180"


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
    reports: ReportsOption = None,
    allow_gaps: AllowGapsOption = 0,
    threads: ThreadsOption = 0,
    skip_air: SkipAirOption = True,
    mode: ModeOption = "auto",
    subnet_agreement: SubnetAgreementOption = False,
    device: DeviceOption = 0,
    url: UrlOption = None,
    triton_mode: TritonModeOption = "tile",
    timeout: TimeoutOption = 0.0,
    shared_memory: SharedMemoryOption = False,
    triton_tls_ca: ServerAuthoritiesOption = None,
    triton_tls_cert: ServerCertificateOption = None,
    triton_tls_key: ServerKeyOption = None,
    triton_token_file: ServerTokenOption = None,
) -> None:
    """Receive series by C-STORE, segment them, and send the results to an archive, until it is stopped.

    What is not done when it is stopped or killed is done after the next start.
    """
    outputs = OutputArguments(viewer, seg_type, compression, uncertainty).options(
        {"rtstruct": rtstruct, "preview": preview, "report": reports is not None}
    )
    with reported(as_json=False):
        from ucseg_runtime.model_folder import default_model_folder, load_model
        from ucseg_runtime.pacs.arrivals import Patience
        from ucseg_runtime.pacs.reception import ReceptionOptions
        from ucseg_runtime.pacs.segmenting import Method
        from ucseg_runtime.pacs.service import ListenOptions
        from ucseg_runtime.pacs.service import listen as listen_until_stopped

        tls = TlsFiles(triton_tls_ca, triton_tls_cert, triton_tls_key)
        local, server = split_engine(
            engine,
            ServerArguments(url or [], triton_mode, timeout, shared_memory, tls, triton_token_file, names=SERVER_NAMES),
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
            reports=reports,
        )
        loaded = load_model(model or default_model_folder())
        if reports is not None and loaded.manifest.image_kind == "frames":
            raise typer.BadParameter("pictures and clips have no report.", param_hint="--reports")
        method = Method(loaded, inference, outputs, InputOptions(allow_gaps=allow_gaps))
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
