"""``torch.compile`` of the program's own model: one graph, and the losses of the model as it is."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain.models.llama import LlamaConfig
from pretrain.models.llama.model import LlamaForCausalLM
from smet import sparsify


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sparse_llama_is_one_graph(checkpointing: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config, activation_checkpointing=checkpointing, eos_id=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sparsify(model, density=0.25, update_interval=0, quiet=True)
    tokens = torch.randint(0, 64, (2, 17))
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        found = loss(tokens)
        results.append([found, *torch.autograd.grad(found, list(model.parameters()))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
