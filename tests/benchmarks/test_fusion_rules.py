"""The comparison of fusion rules: its figures on a phantom whose answer is known, and the page that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fusion_rules import BEGIN, END, OPTIONS, OUTPUTS, Fusing, Remembered, scored, table, written
from tests.model_phantom import ModelPhantom
from tests.training_phantom import block_case
from ucseg_runtime.backends.opening import open_backend
from ucseg_runtime.model_folder import load_model

# Air, the block of -400 HU as class 2 and that of 400 HU as class 1 are far apart for these centres.
PHANTOM = ModelPhantom(
    centres=(-10.0, 4.0, -4.0),
    sharpness=1.0,
    tile_shape=(16, 32, 32),
    changes={
        "preprocessing": {
            "spacing_mm": (3.0, 3.0, 3.0),
            "intensity": {"kind": "piecewise_linear", "knots": [(-1000.0, -10.0), (1000.0, 10.0)]},
            "padding_value": -1000.0,
        }
    },
)


def test_flawless_output_has_full_scores_and_tables_hold_them(tmp_path: Path) -> None:
    model = load_model(PHANTOM.write(tmp_path / "model"))
    rows = []
    with open_backend(model, OPTIONS, staged=True) as backend:
        network = Remembered(backend)
        for output in OUTPUTS:
            network.rewind()
            rows.append(scored(block_case(), output, Fusing(network, model.manifest, output), model.manifest))

    for row in rows:
        assert dict(row.dice) == {"class 1": 1.0, "class 2": 1.0}
        assert (row.mean_dice, row.error, row.aurc) == (1.0, 0.0, 0.0)
        assert np.isnan(row.auroc), "nothing is wrong"
        # The expected probability under evidence is never close to 1.
        assert row.ece < (0.3 if row.output == "dempster" else 0.05)
    lines = list(table("P", rows, {"upg": 1.25}))
    assert lines[2].startswith("| upg | 1.000 | 1.000 | 1.000 |")
    assert lines[2].endswith("| 1.25 |")
    assert lines[3].startswith("| mean |")
    assert lines[3].endswith("| – |")


def test_tables_replace_what_stands_between_the_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert written(page, ["new"]) == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="marks"):
        written("no marks", ["new"])
