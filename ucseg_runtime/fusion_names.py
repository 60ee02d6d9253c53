"""Fusion rules by name, and the parameters that each has; `fusion_rules` says what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

FusionRule = Literal["upg", "mean", "dempster", "entropy", "coranet", "dual", "burl"]
WeightFreeRule = Literal["mean", "dempster", "entropy", "coranet", "dual", "burl"]
FUSION_PARAMETERS: Mapping[FusionRule, Mapping[str, float]] = MappingProxyType(
    {
        "upg": {},
        "mean": {},
        "dempster": {},
        "entropy": {},
        "coranet": {"cost": 5.0},
        "dual": {},
        "burl": {"tau": 0.5},
    }
)
"""Fusion rule to its parameters with their defaults."""

_PARAMETER_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType({"cost": (1.0, 1000.0), "tau": (0.0, 1.0)})


def complete_parameters(rule: FusionRule, given: Mapping[str, float]) -> dict[str, float]:
    """Parameters of a fusion rule, with the defaults of those that are not given.

    Raises:
        ValueError: The rule has no such parameter, or the value does not lie inside its range.
    """
    if unknown := sorted(set(given) - set(FUSION_PARAMETERS[rule])):
        raise ValueError(f"the fusion rule {rule} has no parameter {', '.join(unknown)}")
    for name, value in given.items():
        low, high = _PARAMETER_RANGES[name]
        if not low < value < high:
            raise ValueError(
                f"the parameter {name} of fusion is {value:g}; expected more than {low:g}, less than {high:g}"
            )
    return {**FUSION_PARAMETERS[rule], **given}
