"""A packed sample whose attention stays within documents: the model's logits are those of each document alone."""

from __future__ import annotations

import pytest
import torch

from pretrain.models.init import initialize
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.model import LlamaForCausalLM

EOS = 2
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def make(eos_id: int | None, checkpointing: bool = False, key_heads: int = 4) -> LlamaForCausalLM:
    config = LlamaConfig(**SHAPE, num_key_value_heads=key_heads)  # type: ignore[arg-type]
    model = LlamaForCausalLM(config, activation_checkpointing=checkpointing, eos_id=eos_id)
    initialize(model, config, seed=1, std=0.1)  # larger than usual: attention must be far from uniform
    return model


def documents(*lengths: int) -> list[torch.Tensor]:
    """Documents of so many tokens, each ended by EOS, (1, length)."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randint(3, 97, (1, length), generator=generator) for length in lengths]
    for document in made:
        document[0, -1] = EOS
    return made


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_logits_of_packed_documents_equal_those_of_each_alone(key_heads: int) -> None:
    first, second = documents(19, 13)
    model, open_model = make(EOS, key_heads=key_heads), make(None, key_heads=key_heads)
    packed = model(torch.cat([first, second], 1))
    alone = [open_model(document) for document in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-5)
    seeing = open_model(torch.cat([first, second], 1))
    assert (seeing[:, 19:] - packed[:, 19:]).abs().max() > 1e-2, "without the option, the second sees the first"


def test_rows_of_a_batch_have_boundaries_of_their_own() -> None:
    short, long, rest = documents(5, 27, 11)
    model, open_model = make(EOS), make(None)
    batch = torch.cat([torch.cat([short, long], 1), torch.cat([long, short], 1)])
    logits = model(batch)
    torch.testing.assert_close(logits[:1, :5], open_model(short), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1:, 27:], open_model(short), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(torch.cat([rest, rest], 1))[:, 11:], open_model(rest), rtol=0, atol=1e-5)


def test_the_loss_sends_nothing_back_into_another_document() -> None:
    first, second = documents(9, 12)
    model = make(EOS)
    embedded: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda *args: embedded.append(args[2]))
    logits = model(torch.cat([first, second], 1))
    (gradient,) = torch.autograd.grad(logits[0, 9:].sum(), embedded)
    assert torch.equal(gradient[0, :9], torch.zeros_like(gradient[0, :9]))
    assert gradient[0, 9:].abs().max() > 0


def test_recomputation_changes_no_gradient() -> None:
    batch = torch.cat(documents(10, 7, 16), 1)
    plain, recomputing = make(EOS), make(EOS, checkpointing=True)
    calls: list[int] = []
    recomputing.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, recomputing):
        model.loss(batch).backward()
    assert len(calls) == 2, "once forward, once again backward"
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)


def test_bf16_keeps_documents_apart() -> None:
    first, second = documents(19, 13)
    model = make(EOS).to(torch.bfloat16)
    changed = first.clone()
    changed[0, :18] = (changed[0, :18] + 1) % 94 + 3
    before, after = (model(torch.cat([start, second], 1)) for start in (first, changed))
    assert torch.equal(before[:, 19:], after[:, 19:])
    assert not torch.equal(before[:, :19], after[:, :19])


def test_without_an_end_of_document_token_attention_is_asked_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: torch.Tensor, **options: object) -> torch.Tensor:
        asked.append(options)
        return attend(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    make(None)(torch.cat(documents(8, 8), 1))
    assert asked == [{"is_causal": True, "enable_gqa": False}] * 3
