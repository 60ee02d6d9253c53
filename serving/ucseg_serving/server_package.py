"""The Triton server that the nvidia-pytriton wheel carries: fetched, checked and unpacked into the cache.

The wheel is unpacked, not installed: what it asks for (an older NumPy among others) then touches no environment, and
the server's Python models run in the environment of ucseg itself.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ucseg_runtime.cache import cache_folder
from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.packaged_data import PackagedData, fetch

TRITON_WHEEL = PackagedData(
    requirement="nvidia-pytriton==0.7.0",
    file="nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
    sha256="21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
)
TRITON_VERSION = (2, 51)


@dataclass(frozen=True)
class ServerPackage:
    """An unpacked server.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    @property
    def program(self) -> Path:
        """The server itself."""
        return self.folder / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """Folder of Triton's backends."""
        return self.folder / "pytriton" / "tritonserver" / "backends"

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Folders that the loader must search: the wheel's, and that of the interpreter's own library."""
        return self.folder / "nvidia_pytriton.libs", Path(str(sysconfig.get_config_var("LIBDIR")))


def install_server() -> ServerPackage:
    """Unpack the server into the cache, if it is not there yet.

    Raises:
        BackendUnavailableError: The wheel has no Python backend for this interpreter.
        InputError: The wheel cannot be fetched, or is not the one that was checked.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = cache_folder() / f"triton-{TRITON_WHEEL.sha256[:12]}-python{python}"
    if target.is_dir():
        return ServerPackage(target)
    wheel = fetch(TRITON_WHEEL)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".triton-") as staging:
        unpacked = ServerPackage(Path(staging) / "triton")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked.folder)  # noqa: S202  (the digest of the archive was checked)
        stub = unpacked.folder / "pytriton" / "tritonserver" / "python_backend_stubs" / python
        if not stub.is_dir():
            raise BackendUnavailableError(
                f"{TRITON_WHEEL.requirement} has no backend for Python {python}.", hint="Use Python 3.11, 3.12 or 3.13."
            )
        shutil.copytree(stub, unpacked.backends / "python", dirs_exist_ok=True)
        for program in (unpacked.program, unpacked.backends / "python" / "triton_python_backend_stub"):
            program.chmod(0o755)
        try:
            unpacked.folder.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return ServerPackage(target)
