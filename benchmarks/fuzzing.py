"""Reading damaged inputs in a process that is watched: does it die, hang, grow, or raise what it should not?

A worker process makes one damaged input after the other, each from its number alone, and reads it as `ucseg segment`
does: scan, selection, headers, pixels, and for some of those that are read the segmentation object. It tells the driver
what came of each. The driver counts, starts a new worker where one died or hung, and keeps the numbers that repeat a
finding.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from unittest import mock

import numpy as np
from pydicom.dataset import Dataset

from fuzz_corpus import Seed
from measuring import environment, peak_memory_mb
from mutations import Mutation, mutated
from ucseg_runtime.dicom import reader, stored_frames
from ucseg_runtime.dicom.decoding import DecodeLimits, DecoderProcess
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.selection import select_series
from ucseg_runtime.dicom.series import Series, scan
from ucseg_runtime.dicom.stacking import acquired_grid
from ucseg_runtime.errors import PixelDataError, UcsegError
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.manifest import Code, SegmentClass
from ucseg_runtime.segmentation import EngineInfo, Segmentation
from ucseg_runtime.slice_stack import SliceStack
from ucseg_runtime.volume import Volume

LONGEST_S = 10.0
"""Processor time of one input."""
MOST_MB = 512.0
"""What the reading process may hold beside the volume that it returns."""

_MOST_WINDOWS = 12
"""Times `LONGEST_S` on the clock after which an input hangs, whatever it used."""
_READY = b"ready\n"
_LIMITS = DecodeLimits(cpu_seconds_per_file=2)
_WRITTEN_SHARE = 10
"""One in so many inputs that are read is also written as a segmentation object."""
_SLICE_MODALITIES = ("CT", "MR", "PT")
_VOLUME, _WRITTEN = "volume", "volume and segmentation object"

Damage = Callable[[int], tuple[bytes, ...]]
"""The files of the input with a number."""


@dataclass
class Findings:
    """What came of the inputs so far.

    Attributes:
        first_seed: Number of the first input.
        inputs: How many ran.
        outcomes: Count by error code, or by what was returned.
        deaths: Numbers of the inputs that ended the reading process.
        hangs: Numbers of those that took longer than `LONGEST_S` of processor time, or had no answer for much longer.
        grown: Numbers of those that took more memory than allowed.
        foreign: Count of exceptions that are no `UcsegError`, by type and place, with the number of the first input.
        slowest_s: Longest processor time of one input, decoder included unless it died.
        peak_mb: Largest resident memory of the reading process.
        seconds: Wall time of all runs together.
    """

    first_seed: int
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    deaths: list[int] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)
    foreign: dict[str, list[int]] = field(default_factory=dict)
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.deaths or self.hangs or self.grown or self.foreign)

    def add(self, seed: int, outcome: str, seconds: float, peak_mb: float, allowed_mb: float) -> None:
        """Count one input that was answered."""
        self.inputs += 1
        self.slowest_s, self.peak_mb = max(self.slowest_s, seconds), max(self.peak_mb, peak_mb)
        if seconds > LONGEST_S:
            self.hangs.append(seed)
        if peak_mb > allowed_mb:
            self.grown.append(seed)
        if outcome.startswith("foreign"):
            first, count = self.foreign.get(outcome, [seed, 0])
            self.foreign[outcome] = [first, count + 1]
        else:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def damage(seeds: list[Seed], mutations: tuple[Mutation, ...]) -> Damage:
    """Inputs made of `seeds` by one to three mutations of one file, or of every file in the same way."""

    def files(number: int) -> tuple[bytes, ...]:
        rng = random.Random(number)  # noqa: S311  (damage has to be repeatable, not secret)
        seed = rng.choice(seeds)
        damaged = rng.choice((*range(len(seed.files)), -1))
        key = rng.random()
        return tuple(
            mutated(content, mutations, random.Random(key)) if damaged in (index, -1) else content  # noqa: S311
            for index, content in enumerate(seed.files)
        )

    return files


def main(description: str, make_damage: Callable[[], Damage]) -> None:
    """Run the script, or its worker.

    Args:
        description: Help text of the script.
        make_damage: Loads the seeds; called in the worker.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--state", type=Path, help="JSON file with the counts so far; a run goes on where it ended")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        _work(make_damage(), chosen.seed, chosen.n)
        return
    machine = environment(
        ("ucseg", "pydicom", "numpy", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "imagecodecs")
    )
    findings = _drive(chosen.seed, chosen.n, chosen.state)
    print(json.dumps({"environment": machine, "clean": findings.clean, **asdict(findings)}, indent=2))
    sys.exit(0 if findings.clean else 1)


# The driver


def _drive(first: int, n: int, state: Path | None) -> Findings:
    findings = _kept(state) if state and state.is_file() else Findings(first)
    before, started = findings.seconds, time.perf_counter()
    while findings.inputs < n:
        next_seed = findings.first_seed + findings.inputs
        with _Watched(next_seed, n - findings.inputs) as worker:
            for answer in worker.answers():
                findings.add(*answer)
                if findings.inputs % 500 == 0:
                    findings.seconds = before + time.perf_counter() - started
                    _keep(findings, state)
                if answer[3] > answer[4]:
                    break  # the high-water mark stays, so that only a new process can be judged
            if worker.ended_early:
                seed = findings.first_seed + findings.inputs
                (findings.hangs if worker.hung else findings.deaths).append(seed)
                findings.inputs += 1
    findings.seconds = before + time.perf_counter() - started
    _keep(findings, state)
    return findings


def _kept(state: Path) -> Findings:
    return Findings(**json.loads(state.read_text(encoding="utf-8")))


def _keep(findings: Findings, state: Path | None) -> None:
    if state is not None:
        state.write_text(json.dumps(asdict(findings), indent=2), encoding="utf-8")


class _Watched:
    """A worker whose answers are waited for, but not for ever; used with ``with``."""

    def __init__(self, first: int, n: int) -> None:
        command = [sys.executable, sys.argv[0], "--worker", "--seed", str(first), "--n", str(n)]
        self._left = n
        # Unbuffered: what lies in a buffer of this process would be an answer that the selector does not see.
        self._process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.hung = False
        self.ended_early = False

    def __enter__(self) -> _Watched:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def answers(self) -> Iterator[tuple[int, str, float, float, float]]:
        """Seed, outcome, seconds, peak and allowed memory in MB of one input after the other."""
        stream = self._process.stdout
        if stream is None:
            raise ValueError("the worker has no standard output")
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            if stream.readline() != _READY:
                raise RuntimeError("the worker did not start; run the script with --worker to see why")
            while self._left:
                self.hung = not self._answered(selector)
                line = b"" if self.hung else stream.readline()
                if not line.endswith(b"\n"):
                    self.ended_early = True
                    return
                yield tuple(json.loads(line))
                self._left -= 1

    def _answered(self, selector: selectors.BaseSelector) -> bool:
        """Whether an answer comes in time, which is processor time: a busy machine must not look like a hang."""
        used: list[float] = []
        while not selector.select(LONGEST_S):
            used.append(_processor_seconds(self._process.pid))
            if used[-1] - used[0] > LONGEST_S or len(used) == _MOST_WINDOWS:
                return False
        return True


def _processor_seconds(pid: int) -> float:
    """Processor time of a process and of its children so far; 0 when it is gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(
        _processor_seconds(int(child)) for child in children
    )


# The worker


def _work(files_of: Damage, first: int, n: int) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not garble an answer
    decoder = _SharedDecoder()
    patched = mock.patch.object(stored_frames, "DecoderProcess", return_value=decoder)
    with tempfile.TemporaryDirectory() as folder, patched, decoder.running():
        print(_READY.decode(), end="", file=answers, flush=True)
        for seed in range(first, first + n):
            _write(Path(folder), files_of(seed))
            started = _processor_seconds(os.getpid())
            outcome, volume_mb = _outcome(Path(folder), seed)
            seconds = max(0.0, _processor_seconds(os.getpid()) - started)  # less when the decoder was replaced
            answer = (seed, outcome, round(seconds, 2), peak_memory_mb(), MOST_MB + volume_mb)
            print(json.dumps(answer), file=answers, flush=True)


def _write(folder: Path, files: tuple[bytes, ...]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for index, content in enumerate(files):
        (folder / f"{index}.dcm").write_bytes(content)


def _outcome(folder: Path, seed: int) -> tuple[str, float]:
    """What came of the input, and the size in MB of the volume that was returned."""
    try:
        found = scan(folder)
        modality = next((s.modality for s in found.series if s.modality in _SLICE_MODALITIES), "CT")
        series = select_series(found, modality).chosen
        headers, volume = reader.source_headers(series), reader.read_volume(series, _LIMITS)
        _check(series, headers, volume)
        written = seed % _WRITTEN_SHARE == 0 and not _is_resampled(series)
        if written:
            _write_segmentation(folder, headers, volume)
    except UcsegError as error:
        return error.code, 0.0
    except BaseException as error:  # noqa: BLE001  (what escapes is what is looked for)
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "ucseg_runtime" in frame.filename]
        calls = f"{Path(place.filename).name}:{place.lineno}"
        if ours:
            calls = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}, {calls}"
        return f"foreign {type(error).__name__} at {calls}", 0.0
    return _WRITTEN if written else _VOLUME, volume.voxels.nbytes / 1e6


def _is_resampled(series: Series) -> bool:
    """Whether the volume lies on another grid than its slices."""
    return isinstance(acquired_grid(series), SliceStack)


def _check(series: Series, headers: list[Dataset], volume: Volume) -> None:
    if volume.voxels.shape != volume.geometry.shape or len(headers) != series.number_of_instances:
        raise ValueError("the volume has another shape than was declared")
    if not _is_resampled(series) and volume.voxels.shape != (len(headers), series.rows, series.columns):
        raise ValueError("the volume has another shape than was declared")
    if not np.isfinite(volume.geometry.affine).all() or not np.isfinite(volume.voxels).all():
        raise ValueError("the volume or its place is not finite")


def _write_segmentation(folder: Path, headers: list[Dataset], volume: Volume) -> None:
    from ucseg_runtime.dicom.seg_writer import write_seg

    labels = (volume.voxels > np.median(volume.voxels)).astype(np.uint8)
    uncertainty = np.zeros(labels.shape, dtype=np.float32)
    segmentation = Segmentation(labels, uncertainty, None, volume.geometry, (_CLASS,), _IDENTITY.engine)
    write_seg(folder / "segmentation.dcm", segmentation, headers, _IDENTITY)


_CODE = Code(value="10200004", scheme="SCT", meaning="Liver")
_CLASS = SegmentClass(
    label=1,
    name="liver",
    category=Code(value="123037004", scheme="SCT", meaning="Anatomical Structure"),
    type=_CODE,
    modifier=None,
    colour_rgb=(221, 130, 101),
)
_IDENTITY = RunIdentity(
    model_name="fuzz",
    model_version="1",
    model_digest="0" * 64,
    engine=EngineInfo(name="none", version="1", precision="f32", device="CPU", proven=False),
    settings_digest="0" * 64,
    ucseg_version="0",
)


class _SharedDecoder:
    """Stands in for one decoding process per series: one for many, because starting takes far longer than decoding.

    It is replaced as soon as it died.
    """

    def __init__(self) -> None:
        self._process: DecoderProcess | None = None

    def __enter__(self) -> _SharedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the process running for the next series."""

    def running(self) -> _Closing:
        """Ends the process with the block."""
        return _Closing(self)

    def decode(self, codestream: bytes, instance: Instance, out: memoryview) -> None:
        """See `DecoderProcess.decode`."""
        self._process = self._process or DecoderProcess(_LIMITS)
        try:
            self._process.decode(codestream, instance, out)
        except PixelDataError as error:
            if error.code == "UCSEG-E106":
                self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.__exit__(None, None, None)
            self._process = None


class _Closing:
    def __init__(self, decoder: _SharedDecoder) -> None:
        self._decoder = decoder

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *_: object) -> None:
        self._decoder.close()
