"""UIDs of outputs, derived from what goes into them, so that running again gives the same objects and no duplicates."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydicom.uid import UID

from ucseg_runtime.identity import RunIdentity
from ucseg_runtime.site_secret import site_secret


def derived_uid(secret: bytes, parts: object) -> UID:
    """A UID under 2.25 that depends on `secret` and `parts` alone.

    Args:
        secret: Key of the HMAC.
        parts: Anything that JSON can hold.

    Source: DICOM PS3.5 B.2 (UUID as a decimal integer under 2.25); the UUID has the layout of version 5, filled from an
    HMAC-SHA256 instead of SHA-1.
    """
    message = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    digest = hmac.new(secret, message, hashlib.sha256).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


@dataclass(frozen=True)
class UidSource:
    """Derives the UIDs of everything that one run writes for one series.

    Attributes:
        sources: SOP Instance UIDs of the source images, in any order.
        identity: Model, engine and settings.
        secret: Key of the site; see `site_secret`.
    """

    sources: tuple[str, ...]
    identity: RunIdentity
    secret: bytes = field(default_factory=site_secret, repr=False)

    def of_output(self, role: str) -> UID:
        """UID of something that the run creates, for instance the role ``segmentation binary instance``."""
        return derived_uid(self.secret, ["output", _ordered(self.sources), self.identity.as_json(), role])

    def of_segment(self, label: int) -> UID:
        """Tracking UID under which segmentation and report speak of the same organ."""
        return self.of_output(f"segment {label}")

    def of_device(self) -> UID:
        """UID of the model with its engine as a device, the same for every patient."""
        return derived_uid(self.secret, ["device", self.identity.as_json()])


def _ordered(uids: Iterable[str]) -> list[str]:
    return sorted(str(uid) for uid in uids)
