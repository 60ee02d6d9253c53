"""How well OHIF shows the segmentations, as JSON, and one picture of it.

    python -m tests.viewer.figures docs

writes ``viewer.json`` and ``viewer.png`` into the folder: per case the least intersection over union of all its slices
and segments, and the largest difference of a segment's colour from the one that it must have.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests

from tests.processes import LOOPBACK
from tests.viewer.cases import ALL, Case
from tests.viewer.programs import OHIF_PACKAGE, install_programs
from tests.viewer.viewing import Seen, Viewer, compare_slice, look_at, open_case, open_viewer, picture_when_drawn


def main(arguments: list[str]) -> None:
    """Look at every case and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    with open_viewer(install_programs()) as viewer, tempfile.TemporaryDirectory() as files:
        (folder / "viewer.png").write_bytes(
            _page(viewer, Case("axial", "binary", name="picture"), Path(files) / "picture")
        )
        figures: dict[str, object] = {"versions": _versions(viewer)}
        for number, case in enumerate(ALL):
            name = f"{case.series}, {case.seg_type}"
            figures[name] = _figures(case, look_at(viewer, case, Path(files) / str(number)))
    (folder / "viewer.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _page(viewer: Viewer, case: Case, files: Path) -> bytes:
    """The whole page, PNG, at the slice with the most organs."""
    organs = [len(np.unique(plane)) for plane in case.phantom.labels]
    with open_case(viewer, case, files) as ohif:
        ohif.show_segmentation()
        picture_when_drawn(ohif, case, int(np.argmax(organs)))
        return ohif.page.screenshot()


def _versions(viewer: Viewer) -> dict[str, str]:
    browser = viewer.context.browser
    system = requests.get(f"http://{LOOPBACK}:{viewer.pacs.port}/system", timeout=10.0).json()
    return {
        "OHIF": OHIF_PACKAGE.rpartition("@")[2],
        "Orthanc": system["Version"],
        "Chromium": browser.version if browser else "",
    }


def _figures(case: Case, seen: Seen) -> dict[str, object]:
    shown = [compare_slice(case, case.labels, z, picture) for z, picture in seen.pictures.items()]
    return {
        "slices": list(seen.pictures),
        "least IoU": round(min(item.worst_iou for item in shown), 4),
        "largest colour error": max(item.worst_colour_error for item in shown),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
