"""``ucseg inspect``: a verdict and a reason for every series of an input."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command_line import assert_no_patient_data, run
from tests.phantoms import CtPhantom, write_ct_series

PHANTOM = CtPhantom(shape=(20, 40, 48))


def test_inspect_says_which_series_is_used_and_why_not_the_other(study: Path, model: Path) -> None:
    write_ct_series(study / "short", CtPhantom(shape=(5, 40, 48), series_number=2))

    result = run("inspect", study, "--model", model, "--json")

    assert result.exit_code == 0, result.output
    verdicts = {row["files"]: (row["verdict"], row["reason"]) for row in json.loads(result.stdout)["series"]}
    assert verdicts[20][0] == "used"
    assert verdicts[5][0] == "rejected"
    assert "fewer slices" in verdicts[5][1]
    assert_no_patient_data(result.output)


def test_inspect_gives_every_series_its_own_reason_and_the_exit_code_of_the_input(model: Path, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "gap", PHANTOM, omit=(7,))
    write_ct_series(tmp_path / "mr", CtPhantom(shape=(5, 40, 48), series_number=2, modality="MR"))

    result = run("inspect", tmp_path, "--model", model, "--json")

    assert result.exit_code == 3
    reasons = {row["modality"]: row["reason"] for row in json.loads(result.stdout)["series"]}
    assert "5.00 mm apart" in reasons["CT"]
    assert "mm apart" not in reasons["MR"]
    assert run("inspect", tmp_path, "--model", model).exit_code == 3
