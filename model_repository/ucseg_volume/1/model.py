"""Whole volumes through the pipeline of ucseg; see `ucseg_serving.volume_model`."""

from ucseg_serving.volume_model import VolumeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
