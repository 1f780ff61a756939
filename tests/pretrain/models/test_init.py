"""Initial weights depend on seed and name, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from pretrain.models.init import initial_weight, initialize
from pretrain.models.inventory import Role
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.hf import to_config
from pretrain.models.llama.model import LlamaForCausalLM

NAME = "model.layers.0.mlp.up_proj.weight"


def model(layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
        )
    )


def test_standard_deviation_and_norms() -> None:
    weight = initial_weight(NAME, Role.COLUMN, (400, 300), seed=0, std=0.02)
    assert weight.dtype == torch.float32
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=3 * 0.02 / 120000**0.5)
    assert torch.equal(initial_weight("model.norm.weight", Role.SCALE, (8,), seed=0, std=0.02), torch.ones(8))


def test_seed_and_name_decide() -> None:
    weight = initial_weight(NAME, Role.COLUMN, (16, 16), seed=0, std=1.0)
    torch.manual_seed(99)
    assert torch.equal(weight, initial_weight(NAME, Role.COLUMN, (16, 16), seed=0, std=1.0))
    assert not torch.equal(weight, initial_weight(NAME, Role.COLUMN, (16, 16), seed=1, std=1.0))
    assert not torch.equal(weight, initial_weight(NAME.replace("0", "1"), Role.COLUMN, (16, 16), seed=0, std=1.0))


def test_a_layer_is_the_same_in_a_deeper_model_and_the_global_generator_is_left_alone() -> None:
    shallow, deep = model(1), model(3)
    state = torch.get_rng_state()
    initialize(shallow, shallow.config, seed=5)
    initialize(deep, deep.config, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    weights = dict(deep.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in shallow.named_parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_scaled_weights_start_by_their_inputs_and_what_adds_to_the_stream_by_the_depth(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2,
        tie_word_embeddings=tied, initializer="scaled",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    initialize(model, config, seed=3)
    found = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert found["model.embed_tokens.weight"] == pytest.approx(0.125 if tied else 1.0, rel=0.05)
    assert tied or found["lm_head.weight"] == pytest.approx(0.125, rel=0.05)
    for n in range(3):
        layer = f"model.layers.{n}."
        assert found[f"{layer}self_attn.q_proj.weight"] == pytest.approx(0.125, rel=0.05)
        assert found[f"{layer}self_attn.o_proj.weight"] == pytest.approx(0.125 / 6**0.5, rel=0.05)
        assert found[f"{layer}mlp.down_proj.weight"] == pytest.approx(192**-0.5 / 6**0.5, rel=0.05)
    assert "initializer" not in to_config(config, "float32", {})


def test_lower_precision_is_the_rounded_fp32_model() -> None:
    full, half = model(1), model(1).to(torch.bfloat16)
    initialize(full, full.config, seed=5)
    initialize(half, half.config, seed=5)
    for exact, rounded in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(exact.to(torch.bfloat16), rounded)
