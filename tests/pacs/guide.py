"""Guides to archives, run with the archive of the tests."""

from __future__ import annotations

from pathlib import Path

from tests.guide_shell import GuideShell
from tests.pacs.archive import TestArchive
from tests.phantoms import CtPhantom
from tests.processes import LOOPBACK, free_port

LISTENING = "listening as"
"""What a listener prints when it is ready."""


def guide_shell(folder: Path, archive: TestArchive, model: Path, study: CtPhantom) -> GuideShell:
    """A shell for commands that name the archive `pacs.example`, a listener, STUDY and SERIES.

    Args:
        folder: Where commands run.
        archive: Whose ports take the place of the guide's.
        model: Of the commands that segment.
        study: What the archive holds.
    """
    monitor, port = f"{LOOPBACK}:{free_port()}", free_port()
    replaced = {
        "pacs.example:4242": f"{LOOPBACK}:{archive.pacs.dicom_port}",
        "pacs.example:8042": f"{LOOPBACK}:{archive.pacs.port}",
        "127.0.0.1:11180": monitor,
        "--port 11112": f"--port {port}",
        "STUDY": study.study_uid,
        "SERIES": study.series_uid,
        "/srv/ucseg": str(folder / "srv"),
    }
    added = (
        (r"ucseg (segment|batch|pacs listen) ", f"--model {model}"),
        (r"ucseg (segment|batch|pacs listen) (?!.*--engine)", "--engine openvino"),
        (r"pacs listen ", "--quiet-time 0.5"),
        (r"pacs listen (?!.*--port)", f"--port {port}"),
        (r"pacs listen (?!.*--monitor)", f"--monitor {monitor}"),
    )
    return GuideShell(folder, replaced, added)
