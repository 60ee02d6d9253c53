"""JSON as every file and every ``--json`` of this package has it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def json_text(value: object) -> str:
    """Indented JSON with sorted keys; NaN becomes null, since JSON has none.

    Raises:
        ValueError: A number is infinite.
    """
    return json.dumps(_without_nan(value), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
