"""Triton's own configuration schema, as tritonclient ships it."""

from __future__ import annotations

from typing import Any, TypeAlias

from ucseg_serving.extra import extra_missing

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2
except ImportError as error:
    raise extra_missing() from error

__all__ = ["Message", "model_config_pb2", "text_format"]

Message: TypeAlias = Any
"""A protobuf message; its generated class carries no types."""
