"""Tiles that are not finite are refused; see `ucseg_serving.check_model`."""

from ucseg_serving.check_model import CheckModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
