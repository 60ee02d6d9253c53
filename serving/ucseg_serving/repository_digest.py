"""One digest for a whole model repository, so that what a server is started on is what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ucseg_runtime.errors import RepositoryError

_PREFIX = "sha256:"
_SHOWN = len(_PREFIX) + 12
_AGAIN = (
    "Copy the repository again from where it was written, or give the digest that `ucseg-serve verify` prints there."
)


def repository_digest(folder: Path) -> str:
    """``sha256:`` and 64 hexadecimal digits over the path and content of every file below a folder.

    It is the SHA-256 of what ``sha256sum`` prints for all files, sorted by their bytes. Names beginning with a dot and
    byte code that a server left count as well: whatever is there, the next server might load.

    Args:
        folder: Model repository.

    Raises:
        RepositoryError: There is no such folder; something below it is neither a file nor a folder, has a name that
            ``sha256sum`` would write in another way, or cannot be read.
    """
    if not folder.is_dir():
        raise RepositoryError(
            "there is no such repository.", hint="Write it: ucseg-serve repository MODEL_DIR --out REPO."
        )
    try:
        lines = [_line(folder, path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    except OSError as error:
        raise RepositoryError(f"the repository cannot be read ({type(error).__name__}).", hint=_AGAIN) from error
    # By the bytes of the paths, which follow the digests of one length and two spaces.
    lines.sort(key=lambda line: line[hashlib.sha256().digest_size * 2 :])
    return _PREFIX + hashlib.sha256(b"".join(lines)).hexdigest()


def check_digest(folder: Path, expected: str) -> None:
    """Refuse a repository that is not the expected one.

    Args:
        folder: Model repository.
        expected: As `repository_digest` gives it.

    Raises:
        RepositoryError: It is another one, or `repository_digest` refuses it.
    """
    found = repository_digest(folder)
    if found != expected:
        raise RepositoryError(
            f"the repository has {found[:_SHOWN]}…; expected {expected[:_SHOWN]}….",
            hint=f"{_AGAIN} A server on a folder that can be written leaves __pycache__ there: delete that.",
        )


def _line(folder: Path, path: Path) -> bytes:
    name = path.relative_to(folder).as_posix()
    if path.is_symlink() or not path.is_file():
        raise RepositoryError(f"{name} is neither a file nor a folder.", hint=_AGAIN)
    if not name.isprintable() or "\\" in name:
        raise RepositoryError(f"the name {name!r} has characters that no file of a repository has.", hint=_AGAIN)
    with path.open("rb") as stream:
        return f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n".encode()
