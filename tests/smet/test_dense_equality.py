"""Density 1 with updates off is dense AdamW, step for step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from smet import (
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    parameter_groups,
    sparse_layers,
    sparsify,
)

STEPS = 20


def llama() -> LlamaForCausalLM:
    torch.manual_seed(11)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )  # fmt: skip
    )


def batch(step: int) -> Tensor:
    start = torch.randint(0, 128, (4, 1), generator=torch.Generator().manual_seed(step))
    return (start + 3 * torch.arange(32)) % 128


def train(model: nn.Module, optimizer: torch.optim.Optimizer, controller: TopologyController | None) -> list[float]:
    losses = []
    for step in range(STEPS):
        if controller:
            controller.before_step()
        loss = model(input_ids=batch(step), labels=batch(step)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if controller:
            assert controller.after_step() is None, "no topology update at density 1"
        losses.append(loss.item())
    return losses


def dense_losses(model: nn.Module, decay: float) -> list[float]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return train(model, torch.optim.AdamW(groups, lr=2e-3), None)


@pytest.mark.parametrize("residency", ["compressed", "dense"])
@pytest.mark.parametrize("method", ["dense", "smet"])
def test_density_one_equals_torchs_adamw_for_20_steps(method: str, residency: str) -> None:
    """Every remedy of SMET may be on: nothing is ever regrown, and density 1 scales nothing."""
    config = SmetConfig.preset(method, density=1.0, update_interval=5, weight_residency=residency)
    dense = llama()
    sparse = sparsify(copy.deepcopy(dense), config).model
    assert all(layer.is_full for layer in sparse_layers(sparse).values())
    remedies = Remedies(config.bias_correction, config.warmup_steps, config.warmup_scope)
    optimizer = SmetAdamW(parameter_groups(sparse, config, 0.1), lr=2e-3, remedies=remedies)
    controller = TopologyController(sparse, config, LocalStore(optimizer), MaskBank(sparse), STEPS)
    ours = train(sparse, optimizer, controller)
    theirs = dense_losses(dense, 0.1)
    assert ours[-1] < 0.8 * ours[0], "the comparison must be of models that learn"
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=0)


def test_static_sparsity_without_remedies_is_adamw_on_a_masked_model() -> None:
    """The same at density 0.3: torch's AdamW with its gradients masked after every backward."""
    config = SmetConfig.preset("static", density=0.3, fan_in_init=True)
    dense = llama()
    sparse = sparsify(copy.deepcopy(dense), config).model
    masks = {}
    for name, layer in sparse_layers(sparse).items():
        weight = dense.get_submodule(name).weight
        weight.data.copy_(layer.dense_weight())
        masks[weight] = (layer.dense_weight() != 0).float()
        weight.register_hook(lambda gradient, mask=masks[weight]: gradient * mask)
    optimizer = SmetAdamW(parameter_groups(sparse, config, 0.1), lr=2e-3)
    ours = train(sparse, optimizer, None)
    theirs = dense_losses(dense, 0.1)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=0)
