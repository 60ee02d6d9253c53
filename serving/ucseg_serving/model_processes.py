"""The processes that Triton runs Python models in, and the wait for the loss of one."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

_PROCESSES = Path("/proc")
_MODEL_CODE = "model.py"
_POLL_S = 0.5


def wait_for_a_loss(triton: subprocess.Popen[bytes]) -> frozenset[str]:
    """Wait until a Python model has lost a process, or Triton has ended.

    Triton takes notice of the end of a process only if it ended that itself, as it does with those of models that it
    unloads. All others stay as they are, ended and children of Triton.

    Args:
        triton: Running.

    Returns:
        Names of the models, while Triton goes on; empty when it has ended.
    """
    names: dict[int, str] = {}
    before: set[int] = set()
    while triton.poll() is None:
        found = model_processes(triton.pid)
        names |= {process: model for process, model in found.items() if model}
        ended = {process for process, model in found.items() if not model}
        if lost := ended & before:  # not just now, as when Triton ends too
            return frozenset(names.get(process, "a model") for process in lost)
        before = ended
        time.sleep(_POLL_S)
    return frozenset()


def model_processes(triton: int) -> dict[int, str]:
    """Processes of Triton's Python backend.

    Args:
        triton: Its process.

    Returns:
        Process to the name of its model; the name is empty where the process has ended, and Triton took no notice.
    """
    found = {}
    for process in _PROCESSES.glob("[0-9]*"):
        try:
            status = (process / "stat").read_text(encoding="utf-8", errors="replace")
            if int(status.rpartition(") ")[2].split()[1]) != triton:
                continue
            arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # gone meanwhile, or of somebody else
            continue
        code = next((Path(argument) for argument in arguments if Path(argument).name == _MODEL_CODE), None)
        if code is not None:
            found[int(process.name)] = code.parts[-3]  # MODEL/VERSION/model.py
        elif not any(arguments):
            found[int(process.name)] = ""
    return found
