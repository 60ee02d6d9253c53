"""Trained trio in, model folder out: ONNX stages, the merged graph, the manifest, and the proof that they agree."""
