"""The place of a run in a distributed trace: what tells the spans of a server to which trace they belong.

ucseg itself records no spans. It passes on the context that it was started in, so that a server's spans hang below
those of whoever started it. Nothing but random identifiers is passed on.

Source: W3C Trace Context, section 3.2, ``traceparent``.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_FORMAT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<parent>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


@dataclass(frozen=True)
class TraceContext:
    """One place in one trace.

    Attributes:
        trace_id: 32 hexadecimal digits.
        parent_id: Of the span that the server's spans are children of, 16 hexadecimal digits.
        flags: 2 hexadecimal digits; ``01`` asks for recording.
    """

    trace_id: str
    parent_id: str
    flags: str = "01"

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags}"


def new_trace_context() -> TraceContext:
    """A trace of its own; its first span is recorded by nobody."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))


def trace_context_from_text(text: str) -> TraceContext:
    """Read a ``traceparent``; what a version that is not known yet adds is left out.

    Raises:
        ValueError: It is none.
    """
    found = _FORMAT.fullmatch(text.strip())
    if found is None or (found["version"] == "00" and found["more"]):
        raise ValueError("not a W3C trace context")
    return TraceContext(found["trace"], found["parent"], found["flags"])
