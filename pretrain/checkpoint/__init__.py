"""Checkpoints of logical vectors: written at any layout, read at any other."""
