"""What the commands share: errors, log files, threads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from ucseg_runtime.cli.reporting import reported

LOG_NAME = "train.log"

OUT = typer.Option("--out", help="Folder for state, checkpoint and log; a run found there is continued.")
SEED = typer.Option("--seed", min=0, help="Seed of everything random.")
THREADS = typer.Option("--threads", min=0, help="Threads of torch; 0 means every core.")


@contextmanager
def running(threads: int = 0, log_folder: Path | None = None) -> Iterator[None]:
    """Errors become one line and an exit code; figures go to standard error and to a file.

    Args:
        threads: Of torch; 0 leaves it as it is.
        log_folder: Folder for the log file; none without.
    """
    with reported(as_json=False), _logging_to(log_folder):
        if threads:
            import torch

            torch.set_num_threads(threads)
        yield


def require_known(values: Sequence[str], known: Sequence[str], option: str) -> None:
    """Refuse values that an option does not have.

    Raises:
        typer.BadParameter: A value is unknown.
    """
    for value in values:
        if value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)


@contextmanager
def _logging_to(folder: Path | None) -> Iterator[None]:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / LOG_NAME, encoding="utf-8"))
    logger = logging.getLogger("ucseg_training")
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
