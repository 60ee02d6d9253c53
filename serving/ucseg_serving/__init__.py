"""NVIDIA Triton: the model repository, a local server, and what runs inside of it."""
