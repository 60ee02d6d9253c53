"""Descriptions of data sets from YAML: those that come with the package, and those of users."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import ValidationError

from ucseg_runtime.errors import InputError
from ucseg_training.data.dataset_spec import DatasetSpec


def preset_names() -> tuple[str, ...]:
    """Data sets that come with the package, sorted."""
    folder = files("ucseg_training") / "presets"
    return tuple(sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")))


def load_dataset_spec(source: str | Path) -> DatasetSpec:
    """Read a preset, or the description that a user wrote.

    Args:
        source: Name of a preset, or path of a YAML file.

    Raises:
        InputError: No such preset, not a readable YAML file, or a description that breaks the schema; every breach is
            named.
    """
    if isinstance(source, str) and source in preset_names():
        text = (files("ucseg_training") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        text = _read(Path(source))
    try:
        return DatasetSpec.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"the description of the data set is not YAML ({type(error).__name__}).") from error
    except ValidationError as error:
        breaches = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'whole'}: {e['msg']}" for e in error.errors())
        raise InputError(f"the description of the data set breaks the schema: {breaches}.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the description of the data set cannot be read ({type(error).__name__}).",
            hint=f"Give a YAML file, or one of the presets: {', '.join(preset_names())}.",
        ) from error
