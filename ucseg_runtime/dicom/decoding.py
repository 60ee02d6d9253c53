"""The parent's side of decoding: one child process per series, watched, with limits on memory and time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from threading import Timer
from types import TracebackType
from typing import cast

from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.transfer_syntaxes import DECODERS, syntax_name
from ucseg_runtime.errors import PixelDataError
from ucseg_runtime.worker import child_environment

_CHILD_MODULE = "ucseg_runtime.dicom.decode_child"
_DIED = "UCSEG-E106"


@dataclass(frozen=True)
class DecodeLimits:
    """How much the decoding process may use.

    Attributes:
        memory_bytes: Address space of the process, interpreter and codecs included.
        cpu_seconds_per_file: Processor time for one file, whole seconds.
        wall_seconds_per_file: Time for one file; the first one includes the start of the process.
    """

    memory_bytes: int = 2 * 1024**3
    cpu_seconds_per_file: int = 5
    wall_seconds_per_file: float = 60.0


class DecoderProcess:
    """A child process that decodes frames; used with ``with``.

    Native decoders can abort or run away on malformed data. When that happens the child is gone and the parent raises a
    `PixelDataError` that names the file.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        arguments = [str(limits.memory_bytes), str(limits.cpu_seconds_per_file)]
        self._process = subprocess.Popen(  # noqa: S603  fixed program, no shell, no text from any file
            [sys.executable, "-P", "-m", _CHILD_MODULE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
        )
        self._requests = cast(BufferedWriter, self._process.stdin)  # both are pipes, see above
        self._answers = cast(BufferedReader, self._process.stdout)

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def decode(self, codestream: bytes, instance: Instance, out: memoryview) -> str:
        """Write the stored values of one frame into `out`, samples of one pixel together.

        Args:
            codestream: Compressed frame.
            instance: Where it comes from; says what is expected.
            out: Writable, C-contiguous, as many bytes as the frame has.

        Returns:
            Photometric interpretation of what was written. Codecs undo the colour transforms of JPEG 2000, and a JPEG
            may say of itself that its colours are others than the header claims.

        Raises:
            PixelDataError: The frame cannot be decoded, or the child died, ran out of memory or out of time.
        """
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            self._process.kill()

        watchdog = Timer(self._limits.wall_seconds_per_file, expire)
        watchdog.start()
        try:
            answer = self._exchange(codestream, instance, out)
        except (OSError, EOFError) as error:
            raise self._died(instance, expired) from error
        finally:
            watchdog.cancel()
        if "problem" in answer:
            raise self._refused(instance, answer)
        return answer["photometric"]

    def _exchange(self, codestream: bytes, instance: Instance, out: memoryview) -> dict[str, str]:
        self._requests.write(json.dumps(_request(codestream, instance)).encode() + b"\n")
        self._requests.write(codestream)
        self._requests.flush()
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, str] = json.loads(line)
        if "problem" not in answer and self._answers.readinto(out) != out.nbytes:
            raise EOFError
        return answer

    def _died(self, instance: Instance, expired: bool) -> PixelDataError:
        status = self._process.wait()
        if expired:
            cause = f"did not finish within {self._limits.wall_seconds_per_file:g} s"
        elif status < 0:
            cause = f"was ended by signal {-status} ({signal.Signals(-status).name})"
        else:
            cause = f"ended with status {status}"
        return PixelDataError(
            f"{instance.where}: the process that decodes {syntax_name(instance.transfer_syntax)} {cause}.",
            hint="The file is damaged or hostile; export it again.",
            code=_DIED,
        )

    def _refused(self, instance: Instance, answer: dict[str, str]) -> PixelDataError:
        name = syntax_name(instance.transfer_syntax)
        if answer["problem"] == "memory":
            return PixelDataError(
                f"{instance.where}: decoding {name} needs more memory than {self._limits.memory_bytes} bytes.",
                hint="The file is damaged or hostile; export it again.",
                code=_DIED,
            )
        return PixelDataError(
            f"{instance.where} cannot be decoded as {name} ({answer.get('exception', 'unknown failure')}).",
            hint="Export or transfer the series again.",
        )


def _request(codestream: bytes, instance: Instance) -> dict[str, object]:
    pixel_format = instance.pixel_format
    return {
        "length": len(codestream),
        "syntax": instance.transfer_syntax,
        "plugin": DECODERS[instance.transfer_syntax].plugin,
        "dtype": f"<{'i' if pixel_format.signed else 'u'}{pixel_format.bits_allocated // 8}",
        "format": {
            "pixel_keyword": "PixelData",
            "number_of_frames": 1,
            "samples_per_pixel": pixel_format.samples,
            "planar_configuration": 0,  # whatever the header says; plugins whose codec does otherwise say so
            "rows": pixel_format.rows,
            "columns": pixel_format.columns,
            "bits_allocated": pixel_format.bits_allocated,
            "bits_stored": pixel_format.bits_stored,
            "pixel_representation": int(pixel_format.signed),
            "photometric_interpretation": pixel_format.photometric,
        },
    }
