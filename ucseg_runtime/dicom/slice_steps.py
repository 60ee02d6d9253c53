"""How slices follow each other: evenly, tilted, with gaps, or mixed from several acquisitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np

from ucseg_runtime.arrays import Float64Array
from ucseg_runtime.dicom.instances import Instance
from ucseg_runtime.dicom.slice_planes import SlicePlane
from ucseg_runtime.errors import GeometryError, SpacingError

_POSITION_TOLERANCE_MM = 0.1
_RELATIVE_STEP_TOLERANCE = 0.01
_SAME_POSITION_MM = 0.05
_WIDEST_STEP = 1.5  # of the usual step; wider ones are gaps
_NARROWEST_STEP = 0.5
_MOST_BLOCKS = 4
_SHORTEST_BLOCK = 3  # steps
_LARGEST_TILT_DEGREES = 45.0
_LISTED_GROUPS = 6

_ACQUISITION_NUMBERS: dict[str, Callable[[Instance], int | None]] = {
    "acquisition numbers": attrgetter("acquisition.acquisition_number"),
    "temporal positions": attrgetter("acquisition.temporal_position"),
    "echo numbers": attrgetter("acquisition.echo_number"),
}


def refuse_shared_positions(slices: Sequence[Instance], distances: Float64Array) -> None:
    """Refuse several slices at one place.

    Args:
        slices: Ascending.
        distances: Along the normal in mm, shape (slices,).

    Raises:
        SpacingError: There are some.
    """
    shared = np.flatnonzero(np.diff(distances) < _SAME_POSITION_MM)
    if not shared.size:
        return
    one, other = slices[shared[0]], slices[shared[0] + 1]
    raise SpacingError(
        f"{shared.size} slices lie where another one lies, first {one.where} and {other.where}; "
        f"{_listed_acquisitions(slices)}, and no split into them gives full volumes.",
        hint="Export one acquisition, time point or echo at a time.",
        code="UCSEG-E113",
    )


def _listed_acquisitions(slices: Sequence[Instance]) -> str:
    groups = []
    for name, number_of in _ACQUISITION_NUMBERS.items():
        numbers = [number_of(instance) for instance in slices]
        counts = Counter("none" if number is None else str(number) for number in numbers).most_common()
        listed = ", ".join(f"{number} ({count} files)" for number, count in counts[:_LISTED_GROUPS])
        groups.append(f"{name}: {listed}{' …' if len(counts) > _LISTED_GROUPS else ''}")
    return "; ".join(groups)


def is_tilted(slices: Sequence[Instance], positions: Float64Array, first: SlicePlane) -> bool:
    """Whether each slice is shifted sideways against the last by the same slope, as a tilted gantry does it.

    Args:
        slices: Ascending.
        positions: Of their first voxels, LPS mm, shape (slices, 3).
        first: Plane of one of them.

    Raises:
        GeometryError: The shift has no common slope, or more than a gantry can have.
    """
    offset = positions - positions[0]
    along = offset @ first.normal
    sideways = offset - np.outer(along, first.normal)
    if np.linalg.norm(sideways, axis=1).max() <= _POSITION_TOLERANCE_MM:
        return False
    slope = (along @ sideways) / (along @ along)
    apart = np.linalg.norm(sideways - np.outer(along, slope), axis=1)
    worst, tilt = int(apart.argmax()), float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if apart[worst] > _POSITION_TOLERANCE_MM:
        raise GeometryError(
            f"the slices are shifted sideways against each other: {slices[worst].where} lies {apart[worst]:.2f} mm off "
            f"the line of the others (expected at most {_POSITION_TOLERANCE_MM} mm).",
            hint="Export the slices of one acquisition alone.",
            code="UCSEG-E117",
        )
    if tilt > _LARGEST_TILT_DEGREES:
        raise GeometryError(
            f"the slices are shifted sideways, as with a gantry tilt of {tilt:.1f} degrees (expected at most "
            f"{_LARGEST_TILT_DEGREES:g}).",
            hint="Use a series that was reconstructed without gantry tilt.",
            code="UCSEG-E117",
        )
    return True


def is_uneven(distances: Float64Array) -> bool:
    """Whether some slice lies off the evenly spaced grid from the first to the last one."""
    even = np.linspace(distances[0], distances[-1], len(distances))
    return bool(np.abs(distances - even).max() > _step_tolerance(np.diff(distances)))


def refuse_gaps(slices: Sequence[Instance], distances: Float64Array, allow_gaps: int) -> None:
    """Refuse steps that cannot be those of one scan: much wider or much narrower than the usual one.

    A protocol that changes its step is told from missing slices by its instance numbers, which go on without a hole,
    and by the length of its blocks.

    Args:
        slices: Ascending.
        distances: Along the normal in mm, shape (slices,).
        allow_gaps: Most missing slices in a row that are accepted.

    Raises:
        SpacingError: Slices seem to be missing, or those of two acquisitions to be mixed.
    """
    steps = np.diff(distances)
    if _is_in_blocks(slices, steps):
        return
    usual = _usual(steps)
    missing = np.rint(steps / usual).astype(int) - 1
    wide = np.flatnonzero((steps >= _WIDEST_STEP * usual) & (missing > allow_gaps))
    if wide.size:
        raise _gap(slices, steps, int(wide[0]), int(missing[wide[0]]), len(wide))
    narrow = int(steps.argmin())
    if steps[narrow] < _NARROWEST_STEP * usual or (is_uneven(distances) and _is_of_several_passes(slices)):
        raise SpacingError(
            f"the slices are unevenly spaced, from {steps.min():.2f} to {steps.max():.2f} mm: "
            f"{slices[narrow].where} and {slices[narrow + 1].where} are {steps[narrow]:.2f} mm apart, and two "
            f"acquisitions seem to be mixed; {_listed_acquisitions(slices)}.",
            hint="Export one acquisition at a time.",
            code="UCSEG-E116",
        )


def _is_in_blocks(slices: Sequence[Instance], steps: Float64Array) -> bool:
    """Whether the series consists of a few stretches with a step of their own and of consecutive instance numbers."""
    numbers = [instance.instance_number for instance in slices]
    if any(number is None for number in numbers):
        return False
    differences = np.diff(np.array(numbers, dtype=np.int64))
    if not (np.all(differences == 1) or np.all(differences == -1)):
        return False
    changes = np.flatnonzero(np.abs(np.diff(steps)) > _step_tolerance(steps)) + 1
    lengths = np.diff([0, *changes, len(steps)])
    return 1 < len(lengths) <= _MOST_BLOCKS and int(lengths.min()) >= _SHORTEST_BLOCK


def _is_of_several_passes(slices: Sequence[Instance]) -> bool:
    """Whether the slices belong to a few acquisitions, time points or echoes; numbers that count slices say nothing."""
    return any(
        1 < len({numbers(instance) for instance in slices}) < len(slices) for numbers in _ACQUISITION_NUMBERS.values()
    )


def _gap(slices: Sequence[Instance], steps: Float64Array, below: int, missing: int, gaps: int) -> SpacingError:
    more = f" There are {gaps - 1} more such gaps." if gaps > 1 else ""
    return SpacingError(
        f"slices {below + 1} and {below + 2} of {len(slices)}, {slices[below].where} and {slices[below + 1].where}, "
        f"are {steps[below]:.2f} mm apart, the others {_usual(steps):.2f} mm; "
        f"{missing} slice{'s seem' if missing > 1 else ' seems'} to be missing.{more}",
        hint=f"Export the series again, or use --allow-gaps {missing} to resample across it.",
    )


def _step_tolerance(steps: Float64Array) -> float:
    return max(_POSITION_TOLERANCE_MM, _RELATIVE_STEP_TOLERANCE * _usual(steps))


def _usual(steps: Float64Array) -> float:
    """The lower median, which is a true step even when gaps are many."""
    return float(np.sort(steps)[(len(steps) - 1) // 2])
