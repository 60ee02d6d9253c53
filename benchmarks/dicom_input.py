"""Scanning headers and reading a CT, beside a plain pydicom loop over the same files, as JSON.

    python benchmarks/dicom_input.py [--files 10000] [--slices 600] [--n 3] [--kinds uncompressed RLE JPEG-2000]

Every measurement is a process of its own; ucseg and the loop take turns. ucseg scans the folder, chooses the series,
checks everything and decodes in its child process; the loop reads one file after the other in the order of the slices,
decodes and rescales into an array that was made before, and checks nothing. Time in s from the first file on, without
imports; peak memory in MB, for ucseg that of both processes at their highest, added.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from pydicom import uid

from encoders import encoded
from made_up import SIDE, slice_image, write_series
from measuring import Json, answer, child_request, environment, peak_memory_mb, run_child, spread

_PACKAGES = ("ucseg", "pydicom", "numpy", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "imagecodecs")
_KINDS = {
    "uncompressed": uid.ExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG-2000": uid.JPEG2000Lossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG-lossless": uid.JPEGLosslessSV1,
}
_DIFFERENT_SLICES = 20
"""The rest of a compressed series repeats these, since encoding takes longer than what is measured."""


def scan_once(request: Json) -> Json:
    """Seconds of one scan, after one that fills the cache of the operating system."""
    from ucseg_runtime.dicom.series import scan

    scan(Path(request["folder"]))
    started, used = time.perf_counter(), time.process_time()
    found = scan(Path(request["folder"]))
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {"files": found.series[0].number_of_instances, "seconds": seconds, "processor_seconds": processor}


def read_with_ucseg(request: Json) -> Json:
    """Scan, choose, check, read."""
    from unittest import mock

    from ucseg_runtime.dicom import reader, stored_frames
    from ucseg_runtime.dicom.decoding import DecoderProcess
    from ucseg_runtime.dicom.selection import select_series
    from ucseg_runtime.dicom.series import scan

    child_mb = [0.0]

    class Weighed(DecoderProcess):
        def __exit__(self, *of_block: object) -> None:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
            child_mb.append(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024)
            super().__exit__(None, None, None)

    with mock.patch.object(stored_frames, "DecoderProcess", Weighed):
        started = time.perf_counter()
        voxels = reader.read_volume(select_series(scan(Path(request["folder"])), "CT").chosen).voxels
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": peak_memory_mb() + max(child_mb), "sum": int(voxels.sum(dtype="int64"))}


def read_with_a_loop(request: Json) -> Json:
    """Read, decode and rescale one file after the other."""
    import numpy as np
    import pydicom
    from pydicom.pixels import apply_rescale

    from ucseg_runtime.dicom import jpeg_plugin

    jpeg_plugin.register()  # or pydicom could not decode lossless JPEG at all here
    started = time.perf_counter()
    paths = sorted(Path(request["folder"]).iterdir())
    voxels = np.empty((len(paths), SIDE, SIDE), dtype=np.int16)
    for plane, path in zip(voxels, paths, strict=True):
        image = pydicom.dcmread(path)
        plane[...] = apply_rescale(image.pixel_array, image)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": peak_memory_mb(), "sum": int(voxels.sum(dtype="int64"))}


_WORK = {"scan": scan_once, "ucseg": read_with_ucseg, "loop": read_with_a_loop}


def write_small_files(folder: Path, files: int) -> None:
    """One series of so many small images."""
    import numpy as np

    folder.mkdir()
    voxels = np.zeros((16, 16), dtype=np.int16)
    for index in range(files):
        slice_image(index, voxels).save_as(folder / f"{index:06d}.dcm", enforce_file_format=True)


def write_compressed(source: Path, folder: Path, syntax: uid.UID) -> None:
    """The series of `source` in another transfer syntax, with the pixels of its first slices again and again."""
    import pydicom
    from pydicom.encaps import encapsulate

    folder.mkdir()
    frames: list[bytes] = []
    for index, path in enumerate(sorted(source.iterdir())):
        image = pydicom.dcmread(path)
        if index < _DIFFERENT_SLICES:
            frames.append(encapsulate([encoded(image.pixel_array, syntax, image.BitsStored)]))
        image.PixelData = frames[index % _DIFFERENT_SLICES]
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        image.file_meta.TransferSyntaxUID = syntax
        image.save_as(folder / path.name, enforce_file_format=True)


def _compared(folder: Path, n: int) -> Json:
    found: dict[str, list[Json]] = {"ucseg": [], "loop": []}
    for _ in range(n):
        for name, runs in found.items():
            runs.append(run_child(__file__, {"work": name, "folder": str(folder)}))
    if len({run["sum"] for runs in found.values() for run in runs}) != 1:
        raise ValueError("ucseg and the loop read different voxels")
    figures: Json = {
        name: {
            "seconds": spread([run["seconds"] for run in runs], 2),
            "peak_mb": spread([run["peak_mb"] for run in runs], 0),
        }
        for name, runs in found.items()
    }
    for unit in ("seconds", "peak_mb"):
        pairs = zip(found["ucseg"], found["loop"], strict=True)
        figures[f"ratio of {unit}"] = spread([ours[unit] / theirs[unit] for ours, theirs in pairs], 2)
    return figures


def main() -> None:
    """Run the benchmark, or one measurement in a child process."""
    if request := child_request():
        answer(_WORK[request["work"]](request))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="small files to scan; 0 leaves the scan out")
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--n", type=int, default=3, help="rounds")
    parser.add_argument("--kinds", nargs="*", choices=_KINDS, default=["uncompressed", "RLE", "JPEG-2000"])
    chosen = parser.parse_args()
    report: Json = {"environment": environment(_PACKAGES), "rounds": chosen.n, "shape": [chosen.slices, SIDE, SIDE]}
    with tempfile.TemporaryDirectory() as folder:
        if chosen.files:
            write_small_files(Path(folder) / "small", chosen.files)
            request = {"work": "scan", "folder": str(Path(folder) / "small")}
            runs = [run_child(__file__, request) for _ in range(chosen.n)]
            report["scan"] = {
                "files": runs[0]["files"],
                "files_per_s": spread([run["files"] / run["seconds"] for run in runs], 0),
                "files_per_processor_s": spread([run["files"] / run["processor_seconds"] for run in runs], 0),
            }
        native = Path(folder) / "uncompressed"
        if chosen.kinds:
            write_series(native, chosen.slices)
        for kind in chosen.kinds:
            series = native
            if kind != "uncompressed":
                series = Path(folder) / kind
                write_compressed(native, series, _KINDS[kind])
            report[kind] = _compared(series, chosen.n)
            if series != native:
                shutil.rmtree(series)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
