"""Tensor and pipeline parallelism: the only place where the model meets process groups."""
