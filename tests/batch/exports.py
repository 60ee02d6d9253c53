"""Made-up exports: many tiny series in any nesting, some of them bad."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

from tests.model_phantom import ModelPhantom
from tests.phantoms import CtPhantom, write_ct_series
from tests.proof_phantom import proven

TINY = CtPhantom(shape=(6, 24, 24), spacing_mm=(3.0, 2.0, 2.0))


def write_model(folder: Path) -> Path:
    """A model that fits tiny series into one tile, with a proof for the engines of this machine."""
    return proven(ModelPhantom(tile_shape=(16, 32, 32), overlap=0.0).write(folder))


def write_export(root: Path, series: int, studies: int = 3) -> Path:
    """Good series alone, `series` of them over some studies, each in a folder of its own at some depth."""
    for number in range(series):
        phantom = replace(TINY, study=f"study {number % studies}", series_number=number + 1)
        folder = root / f"canary^patient {number % studies}" / ("deep/" * (number % 3)) / f"s{number}"
        write_ct_series(folder, phantom)
    return root


def write_mixed_export(root: Path) -> Path:
    """Two good series, one of them in two folders; one with a gap; an MR; a zip with one more; and litter."""
    first = write_ct_series(root / "a", replace(TINY, study="one"))
    (root / "b").mkdir()
    for path in first[3:]:
        shutil.move(path, root / "b" / path.name)
    write_ct_series(root / "c", replace(TINY, study="two"))
    write_ct_series(root / "d", replace(TINY, study="gap", shape=(8, 24, 24)), omit=(3,))
    write_ct_series(root / "e", replace(TINY, study="mr", modality="MR"))
    zipped = write_ct_series(root / "z", replace(TINY, study="zipped"))
    with zipfile.ZipFile(root / "canary.zip", "w") as archive:
        for path in zipped:
            archive.write(path, path.name)
    shutil.rmtree(root / "z")
    (root / "canary notes.txt").write_text("nothing")
    return root


def tree(out: Path) -> dict[str, bytes]:
    """Every published file below a folder of results, by its path; tables and state left out."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and len(path.relative_to(out).parts) == 3
        and not path.relative_to(out).parts[0].startswith(".")
    }
