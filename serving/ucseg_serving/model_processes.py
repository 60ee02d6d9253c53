"""The processes that Triton runs Python models in, and the wait for the end of one."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack
from pathlib import Path

_MODEL_CODE = "model.py"
_LATER_MS = 300
"""A Triton that ends takes its models with it, and one of them may be the first that is seen to end."""


def wait_for_an_end(triton: int) -> frozenset[str]:
    """Wait until a model of Triton, or Triton itself, has lost its process.

    Args:
        triton: Its process, which this one started and has not waited for.

    Returns:
        Names of the models that lost one, while Triton goes on; empty when it has ended itself.
    """
    with ExitStack() as held:
        of_triton, of_models = select.poll(), select.poll()
        watched = _ending(triton, held)
        of_triton.register(watched, select.POLLIN)
        of_models.register(watched, select.POLLIN)
        models = {}
        for process, model in model_processes(triton).items():
            try:
                end = _ending(process, held)
            except ProcessLookupError:
                return frozenset({model})
            of_models.register(end, select.POLLIN)
            models[end] = model
        of_models.poll()
        if of_triton.poll(_LATER_MS):
            return frozenset()
        return frozenset(models[end] for end, _ in of_models.poll(0))


def _ending(process: int, held: ExitStack) -> int:
    """A file that can be read once the process has ended."""
    end = os.pidfd_open(process)
    held.callback(os.close, end)
    return end


def model_processes(triton: int) -> dict[int, str]:
    """Processes of Triton's Python backend, with the names of the models that they run."""
    return {
        int(folder.name): model for folder in Path("/proc").glob("[0-9]*") if (model := _model_run_by(folder, triton))
    }


def _model_run_by(process: Path, triton: int) -> str:
    """Name of the model; empty for all other processes, and for those that have ended."""
    try:
        if f"\nPPid:\t{triton}\n" not in (process / "status").read_text(encoding="utf-8", errors="replace"):
            return ""
        arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    code = next((Path(argument) for argument in arguments if Path(argument).name == _MODEL_CODE), None)
    return code.parts[-3] if code else ""  # MODEL/VERSION/model.py
