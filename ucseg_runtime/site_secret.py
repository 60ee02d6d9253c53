"""The secret of a site: the key under which UIDs of outputs are derived and records are sealed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping

from ucseg_runtime.json_text import json_text

SITE_SECRET_VARIABLE = "UCSEG_SITE_SECRET"  # noqa: S105  the name of the variable, not a secret
DEFAULT_SITE_SECRET = "ucseg-default-site-secret"  # noqa: S105  published on purpose

SEAL = "seal"
"""Field of a record that holds its seal."""

_PURPOSE = b"ucseg record, version 1\n"
"""Before what is sealed, so that nothing else that is derived from the secret can be taken for a seal."""


def site_secret(environment: Mapping[str, str] | None = None) -> bytes:
    """The key under which UIDs are derived and records are sealed.

    A site that sets ``UCSEG_SITE_SECRET`` keeps others from recomputing its UIDs from source UIDs that they know, and
    from sealing records. All machines of a site need the same value. Unset or empty, the published default is used:
    UIDs are then just as unique and repeatable, but anybody can recompute them, and seals say nothing.

    Args:
        environment: Where to look; the environment of the process when not given.
    """
    value = (os.environ if environment is None else environment).get(SITE_SECRET_VARIABLE)
    return (value or DEFAULT_SITE_SECRET).encode()


def has_own_secret() -> bool:
    """Whether the site has a secret that is not the published one."""
    return site_secret() != DEFAULT_SITE_SECRET.encode()


def sealed(record: Mapping[str, object]) -> dict[str, object]:
    """A record with its seal: HMAC-SHA256 under the secret of the site over all other fields.

    Args:
        record: What JSON can hold; NaN counts as null.
    """
    return {**record, SEAL: _seal(json.loads(json_text(record)))}


def is_sealed(record: Mapping[str, object]) -> bool:
    """Whether a record that was read is word for word the one that this site sealed."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    return hmac.compare_digest(str(record.get(SEAL)).encode(), _seal(rest).encode())


def _seal(record: object) -> str:
    message = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(site_secret(), _PURPOSE + message, hashlib.sha256).hexdigest()
