"""The comparison of series readers: what ucseg does with every damage, and that the judge can tell right from wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.damaged_series import DAMAGES, Answer, Damage, judged, read_by_simpleitk, read_by_ucseg

TOLD = {"one slice 0.5 mm off", "gantry tilt of 14 degrees"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_ucseg_is_right_or_refuses_or_says_what_it_did(damage: Damage, tmp_path: Path) -> None:
    damage.write(tmp_path)

    verdict = judged(damage, tmp_path, read_by_ucseg)

    if damage.name in TOLD:
        assert verdict == "resampled and said so"
    elif damage.truths:
        assert verdict == "right"
    else:
        assert verdict.startswith("refused (UCSEG-E1")


def test_judge_calls_another_step_or_a_mirrored_volume_wrong(tmp_path: Path) -> None:
    clean = next(damage for damage in DAMAGES if damage.name == "clean")
    clean.write(tmp_path)
    good = read_by_ucseg(tmp_path)

    assert judged(clean, tmp_path, lambda _: good) == "right"
    stretched = good.affine @ np.diag([1.05, 1.0, 1.0, 1.0])
    assert judged(clean, tmp_path, lambda _: Answer(good.voxels, stretched)).startswith(
        "WRONG: slices up to 1.9 mm off"
    )
    assert judged(clean, tmp_path, lambda _: Answer(good.voxels[:, :, ::-1], good.affine)) == "WRONG: other voxels"
    assert judged(clean, tmp_path, lambda _: Answer(good.voxels[1:], good.affine)) == "WRONG: 19 slices for 20"


def test_judge_does_not_believe_a_reader_that_says_it_resampled(tmp_path: Path) -> None:
    tilted = next(damage for damage in DAMAGES if damage.name.startswith("gantry tilt"))
    tilted.write(tmp_path)
    ignored = read_by_simpleitk(tmp_path)

    verdict = judged(tilted, tmp_path, lambda _: Answer(ignored.voxels, ignored.affine, "resampled"))

    assert verdict == "WRONG: resampled to another place"


def test_simpleitk_bridges_a_missing_slice_without_an_error(tmp_path: Path) -> None:
    """The premise of the comparison."""
    damage = next(damage for damage in DAMAGES if damage.name == "one slice missing")
    damage.write(tmp_path)

    assert judged(damage, tmp_path, read_by_simpleitk).startswith("WRONG")
