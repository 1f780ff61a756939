"""``train.precision`` as torch's types."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What weights and activations are, by the setting's word."""
