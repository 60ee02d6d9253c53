"""What of a model, an engine and the options decides the outputs of a run: its identity, and its settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from ucseg_runtime.config import InferenceOptions, OutputOptions
from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.model_folder import Model
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.version import __version__


def run_identity(model: Model, engine: EngineInfo, inference: InferenceOptions, outputs: OutputOptions) -> RunIdentity:
    """Everything but the images that decides what the outputs hold."""
    return RunIdentity(
        model_name=model.manifest.name,
        model_version=model.manifest.version,
        model_digest=model.digest,
        engine=engine,
        settings_digest=_settings_digest(model, inference, outputs),
        ucseg_version=__version__,
        fusion=model.manifest.fusion,
    )


def settings_of(inference: InferenceOptions, outputs: OutputOptions) -> dict[str, object]:
    """What of the options decides which results there are and what they hold, as the record has it."""
    return {
        "viewer": outputs.viewer,
        **asdict(outputs.encoding),
        "uncertainty": outputs.uncertainty,
        "extras": sorted(outputs.extras),
        "skip_air": inference.skip_air,
        **_second_look(inference),
    }


def _settings_digest(model: Model, inference: InferenceOptions, outputs: OutputOptions) -> str:
    """SHA-256 over the settings that can change a result; those that may be absent count only where they are set."""
    settings: dict[str, object] = {
        **asdict(outputs.encoding),
        "uncertainty": outputs.uncertainty,
        "skip_air": inference.skip_air,
    }
    if inference.subnet_agreement:  # the stages one by one, which may round otherwise than the merged graph
        settings["subnet_agreement"] = True
    if model.calibration.digest:  # it decides volume intervals and limits of the score
        settings["calibration"] = model.calibration.digest
    settings |= _second_look(inference)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _second_look(inference: InferenceOptions) -> dict[str, object]:
    return {"second_look": True} if inference.second_look else {}
