"""What may be said of a server: URLs, token, shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ucseg_runtime.errors import (
    BackendUnavailableError,
)
from ucseg_runtime.server_options import TritonServer, server_address

TOKEN = "-".join(["made", "up"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://a:1", "grpc://a:1"),
        ("grpcs://a", "grpcs://a:8001"),
        ("http://127.0.0.1", "http://127.0.0.1:8000"),
        ("https://[::1]:9", "https://[::1]:9"),
    ],
)
def test_urls_are_understood(url: str, expected: str) -> None:
    assert str(server_address(url)) == expected


@pytest.mark.parametrize(
    "url", ["", "a:1", "ftp://a", "grpc://", "http://a/v2", "grpc://a:x", "http://u:p@a", "http://a?b=c"]
)
def test_other_urls_are_refused_with_what_was_expected(url: str) -> None:
    with pytest.raises(BackendUnavailableError, match="SCHEME://HOST:PORT"):
        server_address(url)


def test_a_token_goes_over_tls_or_loopback_only() -> None:
    with pytest.raises(BackendUnavailableError, match="unencrypted"):
        TritonServer((server_address("grpc://hospital.example"),), token=TOKEN)
    with pytest.raises(BackendUnavailableError, match="unencrypted"):
        TritonServer((server_address("grpc://hospital.example"),), token_file=Path("token"))
    for url in ("grpcs://hospital.example", "http://127.0.0.1"):
        assert TOKEN not in repr(TritonServer((server_address(url),), token=TOKEN))


def test_shared_memory_with_another_machine_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="another machine"):
        TritonServer((server_address("grpc://hospital.example"),), shared_memory=True)
