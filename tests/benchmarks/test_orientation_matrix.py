"""A sample of the orientation matrix: every output in three orientations, and a cell that must fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.orientation_matrix import expected_centroids, judged, outputs_of, phantoms
from tests.phantoms import OBLIQUE, CtPhantom


def test_every_output_has_every_organ_in_its_place_in_three_orientations(tmp_path: Path) -> None:
    chosen = dict(phantoms(50))
    for name in ("straight 18", "straight 41", "oblique 1"):
        (tmp_path / name).mkdir()
        for kind, read in outputs_of(chosen[name], tmp_path / name).items():
            assert judged(read(), chosen[name])["passed"], (name, kind)


def test_the_matrix_has_48_straight_orientations_and_as_many_oblique_ones_as_are_asked_for() -> None:
    names = [name for name, _ in phantoms(68)]

    assert len(set(names)) == 68
    assert sum(name.startswith("straight") for name in names) == 48


def test_a_mirrored_result_and_one_half_a_voxel_off_do_not_pass() -> None:
    phantom = CtPhantom(orientation=OBLIQUE)
    right = expected_centroids(phantom)

    assert judged(right, phantom)["passed"]
    assert not judged({label: place * (-1, 1, 1) for label, place in right.items()}, phantom)["right_is_right"]
    assert not judged({label: place + np.array([0.0, 0.51, 0.0]) for label, place in right.items()}, phantom)["passed"]
    assert not judged({1: right[1]}, phantom)["passed"]
