"""How long a DICOM SEG takes to write, beside highdicom's own constructor and save.

Both get the same label map, source headers and descriptions of segments, in one process, in turns. ucseg also reads the
file back and compares every voxel, which is timed with it and apart from it.

    python benchmarks/seg_writing.py [--slices 133] [--side 512] [--runs 7]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # phantoms are those of the tests

from measuring import Json, environment, spread
from tests.phantoms import CtPhantom
from tests.results import IDENTITY, segmentation_of, sources_of
from ucseg_runtime.config import SegEncoding, SegType
from ucseg_runtime.dicom import seg_writer
from ucseg_runtime.dicom.source_study import source_study

SYNTAXES = {"binary": ExplicitVRLittleEndian, "labelmap": RLELossless}


def seconds(work: Callable[[], object]) -> float:
    """Wall time; what the one before has left is cleared away first."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(phantom: CtPhantom, seg_type: SegType, runs: int, folder: Path) -> Json:
    """Times of both in turns."""
    segmentation, sources = segmentation_of(phantom), sources_of(phantom)
    study, encoding = source_study(sources, phantom.geometry, IDENTITY), SegEncoding(seg_type)
    segments = [seg_writer.segment_description(item, study, IDENTITY) for item in segmentation.classes]
    ours, theirs = folder / "ucseg.dcm", folder / "highdicom.dcm"

    def by_highdicom() -> None:
        hd.seg.Segmentation(
            source_images=sources,
            pixel_array=segmentation.label_map,
            segmentation_type=seg_type.upper(),
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="none",
            manufacturer_model_name="none",
            software_versions="0",
            device_serial_number="0",
            transfer_syntax_uid=SYNTAXES[seg_type],
        ).save_as(theirs)

    def by_ucseg() -> None:
        seg_writer.write_seg(ours, segmentation, sources, IDENTITY, encoding)

    def read_back() -> None:
        seg_writer._read_back(ours, segmentation, study, encoding)

    times: dict[str, list[float]] = {"highdicom": [], "ucseg": [], "ucseg's reading back": []}
    for work in (by_highdicom, by_ucseg):  # what is loaded at the first call
        work()
    for _ in range(runs):
        for name, work in zip(times, (by_highdicom, by_ucseg, read_back), strict=True):
            times[name].append(seconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{name: spread(values) for name, values in times.items()},
        "ratio": round(medians["ucseg"] / medians["highdicom"], 2),
        "ratio_without_reading_back": round(
            (medians["ucseg"] - medians["ucseg's reading back"]) / medians["highdicom"], 2
        ),
    }


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=133)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    phantom = CtPhantom(shape=(chosen.slices, chosen.side, chosen.side), spacing_mm=(2.5, 0.7, 0.7))
    kinds: tuple[SegType, ...] = ("binary", "labelmap")
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: compare(phantom, kind, chosen.runs, Path(folder)) for kind in kinds}
    print(json.dumps({**found, "shape": phantom.shape, **environment(("highdicom", "pydicom", "numpy"))}, indent=1))


if __name__ == "__main__":
    main()
