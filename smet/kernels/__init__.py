"""Expand, compress and Adam: one small interface, the fastest version for the device behind it."""

from __future__ import annotations

from smet.kernels import reference

expand = reference.expand
compress = reference.compress
adamw = reference.adamw

__all__ = ["adamw", "compress", "expand"]
