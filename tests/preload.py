"""What the ranks of a test need, imported once by the process that they are forked from (``tests.distributed``)."""

from __future__ import annotations

import os
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"  # the guess would be the same, with a warning

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (an engine's start imports it, and all of inductor)
import torch

import pretrain.run  # noqa: F401

torch.set_num_threads(1)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*|deepspeed.*")
