"""Who computed a result: the part of an output's identity that does not come from the images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ucseg_runtime.fusion_names import FusionRule
from ucseg_runtime.segmentation import EngineInfo


@dataclass(frozen=True)
class RunIdentity:
    """Everything but the source images that decides what an output holds.

    Two runs with equal identities over the same images write the same objects under the same UIDs.

    Attributes:
        model_name: Name in the manifest.
        model_version: Version in the manifest.
        model_digest: SHA-256 of the manifest, 64 hexadecimal digits.
        engine: What computed the result, with version and precision.
        settings_digest: SHA-256 of the options that can change a result, 64 hexadecimal digits.
        ucseg_version: Version of this package.
        fusion: How the subnets are fused, which says what kind of uncertainty the outputs hold.
    """

    model_name: str
    model_version: str
    model_digest: str
    engine: EngineInfo
    settings_digest: str
    ucseg_version: str
    fusion: FusionRule = "upg"

    def as_json(self) -> dict[str, object]:
        """As records hold it and UIDs are derived from it; the learned fusion goes without saying."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if (name, value) != ("fusion", "upg")}

    @property
    def engine_text(self) -> str:
        """Engine, version, precision and device in one line, and whether the accuracy gate was skipped."""
        gate = "" if self.engine.proven else ", no accuracy gate"
        return f"{self.engine.name} {self.engine.version} {self.engine.precision} {self.engine.device}{gate}"
