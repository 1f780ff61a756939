"""LLaMA against Hugging Face's: same names, same logits, same gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from pretrain.models.init import initialize
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.model import LlamaForCausalLM, blocks

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "grouped": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1, "rope_theta": 500000.0},
    "own head size": {"head_dim": 24},
}


def make(**changes: object) -> LlamaForCausalLM:
    config = LlamaConfig(**{**SHAPE, **changes})  # type: ignore[arg-type]
    model = LlamaForCausalLM(config)
    initialize(model, config, seed=1, std=0.1)  # larger than usual: attention must be far from uniform
    return model


def tokens(length: int = 33) -> Tensor:
    return torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(3))


def reference(model: LlamaForCausalLM) -> nn.Module:
    from transformers import LlamaConfig
    from transformers import LlamaForCausalLM as Reference

    theirs = Reference(LlamaConfig(**vars(model.config), attn_implementation="eager"))
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=True)
    assert not missing and not unexpected
    return theirs


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_and_gradients_equal_transformers(changes: dict[str, object]) -> None:
    model = make(**changes)
    theirs = reference(model)
    batch = tokens()
    logits = model(batch[:, :-1])
    assert logits.shape == (2, 32, 97)
    torch.testing.assert_close(logits, theirs(batch[:, :-1]).logits, rtol=0, atol=1e-5)
    loss = model.loss(batch)
    their_loss = theirs(input_ids=batch, labels=batch).loss
    torch.testing.assert_close(loss, their_loss, rtol=0, atol=1e-5)
    loss.backward()
    their_loss.backward()
    gradients = dict(theirs.named_parameters())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=0, atol=1e-5, msg=name)


def test_no_token_sees_a_later_one() -> None:
    model, batch = make(), tokens(16)
    changed = batch.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 97
    before, after = model(batch), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_recomputed_activations_change_nothing() -> None:
    plain, batch = make(), tokens()
    recomputing = LlamaForCausalLM(plain.config, activation_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    calls = []
    recomputing.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, recomputing):
        model.loss(batch).backward()
    assert len(calls) == 2, "a recomputed layer runs in the forward and again in the backward pass"
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    with torch.no_grad():
        recomputing.loss(batch)


def test_bf16_is_near_fp32_and_its_loss_is_fp32() -> None:
    model, batch = make(), tokens()
    exact = model.loss(batch).item()
    loss = model.to(torch.bfloat16).loss(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.03)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_blocks_one_after_another_are_the_model() -> None:
    model, batch = make(num_key_value_heads=2), tokens()
    x = batch
    for name, build in blocks(model.config):
        block = build()
        initialize(block, model.config, seed=1, std=0.1, prefix=f"{name}.")
        x = block(x)
    assert torch.equal(x, model(batch))


def test_a_forward_in_inference_mode_does_not_spoil_training() -> None:
    model, batch = make(rope_theta=777.0), tokens()  # a theta of its own: the rotary tables are not cached yet
    with torch.inference_mode():
        model.loss(batch)
    model.loss(batch).backward()


def test_model_files_import_no_distributed_code() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import pretrain.models.llama.model;"
        "new = set(sys.modules) - before;"
        "print([m for m in new if m.split('.')[0] == 'deepspeed' or m.startswith('torch.distributed')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
