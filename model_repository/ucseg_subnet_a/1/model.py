"""A stage of the model on an embedded engine; see `ucseg_serving.stage_model`."""

from ucseg_serving.stage_model import StageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
