"""The training objective of UC-Seg: losses, pseudo-labels, contrast, mixing, their schedules and their sum.

Two modes: `compat` does what upstream's code does, accidents included; `fixed`, the default, does what they were meant
to do. Where they differ, the docstring of the function says how.
"""

from ucseg_training.method.config import Method, MethodConfig
from ucseg_training.method.objective import UcSegObjective
from ucseg_training.method.targets import PartialTarget, complete_target, one_hot_target, partial_target
from ucseg_training.method.terms import Terms

__all__ = [
    "Method",
    "MethodConfig",
    "PartialTarget",
    "Terms",
    "UcSegObjective",
    "complete_target",
    "one_hot_target",
    "partial_target",
]
