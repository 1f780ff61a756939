"""Corpora of token ids: the indexed format, the order of samples, blends, and the batch loader.

The submodules are imported by name, so that tools can read corpora without importing torch.
"""
