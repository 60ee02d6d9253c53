"""A series of a DICOMweb archive as an input like any other: fetched into a private folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ucseg_runtime.errors import InputError
from ucseg_runtime.pacs.addresses import WebResource
from ucseg_runtime.pacs.archives import Connection, archive_at


@contextmanager
def fetched(resource: WebResource, connection: Connection) -> Iterator[Path]:
    """A folder with the instances of a series or study, which is deleted when the statement ends.

    Raises:
        ArchiveUnreachableError: The archive does not answer.
        ArchiveRefusedError: It refuses.
        InputError: It has nothing of it.
    """
    archive = archive_at(resource.archive, connection)
    with tempfile.TemporaryDirectory(prefix="ucseg-") as folder:
        if not archive.fetch(resource.study_uid, resource.series_uid, Path(folder)):
            raise InputError("the archive has no instances of this series.", hint="Check the UIDs of the URL.")
        yield Path(folder)
