"""Triton's own configuration schema, as tritonclient ships it."""

from __future__ import annotations

from typing import Any, TypeAlias

from ucseg_runtime.errors import BackendUnavailableError

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2
except ImportError as error:
    raise BackendUnavailableError(
        "ucseg-serve needs the 'serving' extra:", hint="pip install 'ucseg[serving]'"
    ) from error

__all__ = ["Message", "model_config_pb2", "text_format"]

Message: TypeAlias = Any
"""A protobuf message; its generated class carries no types."""
