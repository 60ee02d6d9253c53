"""Options of ``ucseg pacs listen`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_RECEIVING, _SPOOL = "Receiving", "Spool"

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
ReportsOption = Annotated[
    Path | None,
    typer.Option(
        "--reports",
        help="Folder that gets report.html of every series, as SERIES.html with the name that messages call it by; "
        "nothing is deleted there, and --keep-free holds for its disk too. None when not given.",
        show_default=False,
        rich_help_panel="Outputs",
    ),
]
