"""The W3C trace context: what is read, what is refused, what is passed on."""

from __future__ import annotations

import re

import pytest

from ucseg_runtime.server_options import TritonServer, server_address
from ucseg_runtime.trace_context import new_trace_context, trace_context_from_text

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"


def test_context_is_passed_on_as_it_was_given() -> None:
    context = trace_context_from_text(GIVEN)
    assert (context.trace_id, context.parent_id, str(context)) == (TRACE, PARENT, GIVEN)


def test_what_a_later_version_adds_goes_no_further() -> None:
    assert str(trace_context_from_text(f"cc-{TRACE}-{PARENT}-01-Name^Of^Patient")) == GIVEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Name^Of^Patient",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{GIVEN}\nx: y",
    ],
)
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a W3C trace context"):
        trace_context_from_text(text)


def test_new_contexts_are_valid_and_differ() -> None:
    first, second = new_trace_context(), new_trace_context()
    assert trace_context_from_text(str(first)) == first
    assert first.trace_id != second.trace_id
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", str(second))


def test_headers_hold_the_context_and_the_token_only_where_there_is_one() -> None:
    addresses = (server_address("grpc://127.0.0.1:1"),)
    token = "-".join(["made", "up"])
    assert TritonServer(addresses).headers == {}
    assert TritonServer(addresses, token=token, traceparent=GIVEN).headers == {
        "authorization": f"Bearer {token}",
        "traceparent": GIVEN,
    }
