"""OpenVINO in threads."""

from __future__ import annotations

import subprocess
import sys

_FIRST_CALLS_AT_THE_SAME_TIME = """
import threading
from ucseg_runtime.backends.openvino import OpenVinoEngine

OpenVinoEngine()
import openvino

THREADS = 8
ready = []

def first_call():
    ready.append(True)
    while len(ready) < THREADS:  # spinning, so that all want the interpreter at once
        pass
    openvino.Type.f32.to_dtype()  # what every inference begins with

threads = [threading.Thread(target=first_call) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_tiles_at_the_same_time_do_not_wait_for_each_other_for_ever() -> None:
    for _ in range(6):  # without the precaution of the engine about a third of these never end
        subprocess.run([sys.executable, "-c", _FIRST_CALLS_AT_THE_SAME_TIME], check=True, timeout=60)  # noqa: S603
