"""Reports to look at, which no archive takes: kept in a folder of the site's, one file for each series."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.errors import SpoolError
from ucseg_runtime.publish import PAGE
from ucseg_runtime.safe_files import replace_checked

_SUFFIX = ".html"


@dataclass(frozen=True)
class ReportFolder:
    """Where a listener keeps reports; what it has kept it never deletes.

    Attributes:
        root: Made when missing, readable by its owner alone.
        free_bytes: What must stay free on its disk.
    """

    root: Path
    free_bytes: int = 0

    def prepare(self) -> None:
        """Make the folder, and remove what a listener that was killed has written in part.

        Raises:
            SpoolError: It cannot be used.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            for draft in self.root.glob(f".*{_SUFFIX}-*"):
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(
                f"the folder for reports cannot be used: {reason_of(error)}.",
                hint="Give another --reports, or the right to write there.",
            ) from error

    def keep(self, key: str, results: Path) -> None:
        """Keep a copy of the report among some results, in the place of an earlier one of the same series.

        Args:
            key: How the spool calls the series.
            results: Folder with the report.

        Raises:
            OSError: It cannot be read or written, or the disk would be too full then; an earlier one is as it was.
        """
        page = (results / PAGE).read_bytes()
        if shutil.disk_usage(self.root).free - len(page) < self.free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_checked(self.root / f"{key}{_SUFFIX}", page)


def reason_of(error: OSError) -> str:
    """Why the operating system failed, without a path."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
