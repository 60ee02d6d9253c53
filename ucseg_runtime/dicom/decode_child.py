"""The program that decodes compressed frames in a process of its own, which may die without harm.

It opens no file and knows no patient: it gets codestreams and numbers on standard input and answers with stored values
on standard output. A request is a line of JSON followed by ``length`` bytes; an answer is a line of JSON, followed by
the frame when there is no ``problem``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from ucseg_runtime.dicom import jpeg_plugin


def main() -> None:
    """Serve requests until standard input ends."""
    memory_bytes, cpu_seconds = int(sys.argv[1]), int(sys.argv[2])
    _limit("RLIMIT_AS", memory_bytes)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", 0)
    jpeg_plugin.register()
    answers = _private_standard_output()
    requests = sys.stdin.buffer
    while line := requests.readline():
        request = json.loads(line)
        codestream = requests.read(request["length"])
        _allow_more_processor_time(cpu_seconds)
        header, frame = _answer(request, codestream)
        answers.write(json.dumps(header).encode() + b"\n")
        answers.write(frame)
        answers.flush()


def _answer(request: dict[str, Any], codestream: bytes) -> tuple[dict[str, str], bytes]:  # Any: parsed JSON
    try:
        return _decoded(request, codestream)
    except MemoryError:
        return {"problem": "memory"}, b""
    except BaseException as error:  # noqa: BLE001  pylibjpeg-rle panics as a BaseException; the process must answer
        return {"problem": "decoder", "exception": type(error).__name__}, b""


def _decoded(request: dict[str, Any], codestream: bytes) -> tuple[dict[str, str], bytes]:  # Any: parsed JSON
    """Photometric interpretation and values of one frame, C order, little endian, samples of one pixel together."""
    array, properties = get_decoder(request["syntax"]).as_array(
        encapsulate([codestream], has_bot=False),
        raw=True,
        decoding_plugin=request["plugin"],
        **request["format"],
    )
    samples = request["format"]["samples_per_pixel"]
    if array.shape != (request["format"]["rows"], request["format"]["columns"], samples)[: 2 + (samples > 1)]:
        raise ValueError("the frame has another size than Rows × Columns")
    header = {"photometric": str(properties["photometric_interpretation"])}
    return header, np.ascontiguousarray(array, dtype=request["dtype"]).tobytes()


def _private_standard_output() -> BinaryIO:
    """The pipe to the parent; whatever a codec prints goes nowhere, so it cannot garble an answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return answers


def _limit(name: str, value: int) -> None:
    """Lower a limit of this process; one that it inherited and that is lower still stays."""
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, allowed))


def _allow_more_processor_time(seconds: int) -> None:
    """Let the next frame use `seconds` more than what is used up; beyond that the system ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
