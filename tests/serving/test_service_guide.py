"""The commands of the guide to a service, in their order, against a server that they start themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.ledger import SERVED, commands_for, pages_for
from tests.guide_shell import GuideShell
from tests.phantoms import CtPhantom, write_ct_series
from tests.processes import LOOPBACK, free_port
from tests.proof_phantom import proven
from tests.served_phantom import PHANTOM
from ucseg_runtime.publish import SEGMENTATION

GUIDE = "docs/guide-service.md"
COMMANDS = commands_for(SERVED, GUIDE)
OF_OTHER_PAGES = [line for page in pages_for(SERVED) if page != GUIDE for line in commands_for(SERVED, page)]
LOCAL = COMMANDS.index("ucseg-serve local models")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_commands_of_the_guide_lead_from_a_model_folder_to_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_series(tmp_path / "STUDY", CtPhantom())
    proven(PHANTOM.write(tmp_path / "MODEL_DIR"))
    http, grpc, metrics = free_port(), free_port(), free_port()
    shell = GuideShell(
        tmp_path,
        {
            "HOST:": f"{LOOPBACK}:",
            **{f":{written}": f":{real}" for written, real in ((8000, http), (8001, grpc), (8002, metrics))},
        },
        [
            ("^ucseg-serve local", f"--http-port {http} --grpc-port {grpc} --metrics-port {metrics}"),
            ("^ucseg-serve repository", "--engine openvino --volume-memory 1"),
            ("^ucseg segment (?!.*--model)", "--model MODEL_DIR --overwrite"),
        ],
    )

    printed = [shell.run(line, monkeypatch) for line in COMMANDS[:LOCAL]]
    assert printed[0].splitlines()[-1].removeprefix("repository ") == printed[1].strip()
    with shell.running(COMMANDS[LOCAL], "ready: grpc://"):
        for line in COMMANDS[LOCAL + 1 :] + OF_OTHER_PAGES:
            shell.run(line, monkeypatch)

    masks = [(tmp_path / folder / SEGMENTATION).is_file() for folder in ("BY-TILES", "BY-VOLUME")]
    assert masks == [True, True]
