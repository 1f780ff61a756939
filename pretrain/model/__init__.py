"""LLaMA (``llama``) and its initial weights (``init``)."""

from __future__ import annotations

from pretrain.model.init import initial_weight, initialize
from pretrain.model.llama import DENSE, LlamaForCausalLM, Parts, blocks

__all__ = ["DENSE", "LlamaForCausalLM", "Parts", "blocks", "initial_weight", "initialize"]
