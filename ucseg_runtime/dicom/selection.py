"""Choosing the one series that fits a model, and saying why each other one does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ucseg_runtime.config import WHATEVER_FITS, InputOptions
from ucseg_runtime.dicom.checks import require_modality, require_readable_pixels, require_slice_images
from ucseg_runtime.dicom.frame_images import require_frame_images, require_frame_modality, require_readable_frames
from ucseg_runtime.dicom.instances import Series
from ucseg_runtime.dicom.series import Scan
from ucseg_runtime.dicom.stacking import volume_geometry
from ucseg_runtime.dicom.traits import traits_of
from ucseg_runtime.errors import InputError, SeriesSelectionError
from ucseg_runtime.series_rules import Judgement, SeriesRule

ImageKind: TypeAlias = Literal["slices", "frames"]
"""What a model looks at: slices of a volume, or pictures and clips whose every frame is an image of its own."""

_Check: TypeAlias = tuple[str, Callable[[], object]]

_NOT_CHOSEN = "UCSEG-E121"


@dataclass(frozen=True)
class RejectedSeries:
    """A series that was not chosen.

    Attributes:
        series: The series.
        code: Stable identifier of the reason.
        reason: For people; one or more sentences, free of patient data.
    """

    series: Series
    code: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The outcome of choosing a series.

    Attributes:
        chosen: The series to segment.
        rejected: All others of the scan, in its order.
    """

    chosen: Series
    rejected: tuple[RejectedSeries, ...]


def select_series(
    scan: Scan, modality: str, wanted: InputOptions = WHATEVER_FITS, kind: ImageKind = "slices"
) -> Selection:
    """Choose the series with the most slices among those that pass all rules and are usable for a model.

    Ties go to the lowest series number, then UID, then acquisition number, so the choice never depends on file names.

    Args:
        scan: What the input holds.
        modality: DICOM modality that the model was made for.
        wanted: Series Instance UID and volume that the caller insists on, others are then rejected unseen; and rules
            that a series must pass.
        kind: What the model looks at; for ``frames`` the series must have one instance for each frame.

    Raises:
        SeriesSelectionError: No series is usable; all reasons are in the message.
        InputError: The only series of this modality is not usable; this is its own precise error.
    """
    candidates = _candidates(scan, wanted)
    failures = {
        index: failure
        for index in candidates
        if (failure := unusable_because(scan.series[index], modality, wanted, kind))
    }
    usable = [index for index in candidates if index not in failures]
    if not usable:
        raise _none_usable(scan, failures)
    chosen = min(usable, key=lambda index: _preference(scan.series[index]))
    rejected = [
        _rejected(series, failures.get(index), index in candidates, scan.series[chosen])
        for index, series in enumerate(scan.series)
        if index != chosen
    ]
    return Selection(scan.series[chosen], tuple(rejected))


def unusable_because(
    series: Series, modality: str, wanted: InputOptions = WHATEVER_FITS, kind: ImageKind = "slices"
) -> InputError | None:
    """Why a series cannot be used for a model of a modality, or does not pass all rules; None where it can."""
    before, after = _checks(series, modality, wanted, kind)
    try:
        for _, check in (*before, ("", lambda: require_rules(series, wanted.rules)), *after):
            check()
    except InputError as error:
        return error
    return None


def _checks(
    series: Series, modality: str, wanted: InputOptions, kind: ImageKind
) -> tuple[tuple[_Check, ...], tuple[_Check, ...]]:
    """The checks before and after the rules, by name."""
    if kind == "frames":
        named = wanted.series_uid is not None
        return (
            (f"modality {modality} (model)", lambda: require_frame_modality(series, modality, named)),
            ("pictures of one patient", lambda: require_frame_images(series, modality, named)),
        ), (("complete pixels of a kind that is read", lambda: require_readable_frames(series)),)
    return (
        (f"modality {modality} (model)", lambda: require_modality(series, modality)),
        ("slice images of one patient", lambda: require_slice_images(series)),
    ), (
        ("one straight grid", lambda: volume_geometry(series)),
        ("complete pixels of a kind that is read", lambda: require_readable_pixels(series)),
    )


def require_rules(series: Series, rules: Sequence[SeriesRule]) -> None:
    """Check that a series passes all rules.

    Raises:
        SeriesSelectionError: It does not; the message names the first rule that it fails.
    """
    traits = traits_of(series)
    for judgement in (rule.judge(traits) for rule in rules):
        if not judgement.passed:
            raise SeriesSelectionError(
                f"it fails the rule '{judgement.rule}': {judgement.found}.",
                hint="Choose another series or other rules.",
            )


def explained(series: Series, modality: str, wanted: InputOptions, kind: ImageKind = "slices") -> tuple[Judgement, ...]:
    """Every check and every rule with its outcome, not only the first that fails."""
    before, after = _checks(series, modality, wanted, kind)
    traits = traits_of(series)
    return (
        *(_judged(name, check) for name, check in before),
        *(rule.judge(traits) for rule in wanted.rules),
        *(_judged(name, check) for name, check in after),
    )


def _judged(name: str, check: Callable[[], object]) -> Judgement:
    try:
        check()
    except InputError as error:
        return Judgement(name, False, f"{error.code} {error.message}")
    return Judgement(name, True, "")


def _candidates(scan: Scan, wanted: InputOptions) -> list[int]:
    named = [i for i, series in enumerate(scan.series) if wanted.series_uid in (None, series.series_uid)]
    if not named:
        raise SeriesSelectionError(
            f"none of the {len(scan.series)} series of the input has the Series Instance UID that was asked for.",
            hint="List the series of the input and choose one of them.",
        )
    indices = [i for i in named if wanted.volume in (0, scan.series[i].volume)]
    if not indices:
        raise SeriesSelectionError(
            f"no series of the input has a volume {wanted.volume} (the most that one has is "
            f"{max(scan.series[i].volume for i in named)}).",
            hint="List the series of the input with: ucseg inspect.",
        )
    return indices


def _preference(series: Series) -> tuple[int, float, str, int, str]:
    number = float("inf") if series.series_number is None else series.series_number
    first = series.instances[0].sop_instance_uid
    return -series.number_of_instances, number, series.series_uid, series.volume, first


def _rejected(series: Series, failure: InputError | None, was_candidate: bool, chosen: Series) -> RejectedSeries:
    if failure is not None:
        return RejectedSeries(series, failure.code, str(failure))
    if not was_candidate:
        return RejectedSeries(series, _NOT_CHOSEN, "Not the series that was asked for.")
    if series.number_of_instances < chosen.number_of_instances:
        reason = f"It has fewer slices than {chosen.name}."
    else:
        reason = f"It has as many slices as {chosen.name}, which comes first by its numbers and UID."
    return RejectedSeries(series, _NOT_CHOSEN, reason)


def _none_usable(scan: Scan, failures: dict[int, InputError]) -> InputError:
    """The precise error of the only plausible series, else one error that lists all reasons."""
    plausible = [error for error in failures.values() if not isinstance(error, SeriesSelectionError)]
    errors: Sequence[InputError] = plausible or list(failures.values())
    if len(errors) == 1:
        return errors[0]
    reasons = " ".join(f"[{scan.series[index].name}] {error.message}" for index, error in failures.items())
    return SeriesSelectionError(
        f"none of {len(failures)} series can be segmented: {reasons}", hint="Export a series with a whole volume."
    )
