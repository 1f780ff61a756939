"""Real models of transformers, tiny and random: each becomes sparse as far as it can, says the rest, trains, and is
loaded as it was saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import smet.hf
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

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 96, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": 96, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
MOE = {**SIZES, "num_key_value_heads": 2, "head_dim": 12}
QWEN = {**MOE, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}

BART = {
    "vocab_size": 96, "d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
WHISPER = {
    **BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32, "bos_token_id": 1,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
WAV = {
    **SIZES, "conv_dim": (32, 32), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False, "layerdrop": 0.0,
    "ctc_loss_reduction": "mean",
}  # fmt: skip

CONVOLUTIONS = "weights of more than two dimensions (convolutions, fused experts)"
MODELS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, **ENDS}, ["excluded by '*lm_head*': lm_head"]),
    "LLaMA": ("LlamaConfig", "LlamaForCausalLM", {**SIZES, "num_key_value_heads": 2}, []),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**SIZES, "num_key_value_heads": 2}, []),
    "Falcon": ("FalconConfig", "FalconForCausalLM", SIZES, []),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES, ["excluded by '*lm_head*': lm_head"]),
    "T5": ("T5Config", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}, []),
    "T5 gated": ("T5Config", "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, []),
    "BERT": ("BertConfig", "BertForMaskedLM", SIZES, ["shares its weight with bert.embeddings.word_embeddings"]),
    "BART": (
        "BartConfig", "BartForConditionalGeneration", {**BART, "max_position_embeddings": 32},
        ["class BartScaledWordEmbedding", "excluded by '*lm_head*'"],
    ),
    "Whisper": (
        "WhisperConfig", "WhisperForConditionalGeneration", WHISPER,
        [f"2 layers of class Conv1d (8,064 weights), {CONVOLUTIONS}"],
    ),
    "Wav2Vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC", WAV, ["computed by a parametrization", CONVOLUTIONS]),
    "ViT": ("ViTConfig", "ViTForImageClassification", VIT, ["1 layer of class Conv2d", "ViTEmbeddings"]),
    "Mamba": ("MambaConfig", "MambaForCausalLM", {**SIZES, "state_size": 8}, ["MambaMixer", "Conv1d"]),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**MOE, "num_local_experts": 4}, ["TopKRouter"]),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", QWEN, ["TopKRouter"]),
}  # fmt: skip
"""Name, configuration class, model class, sizes, and what the report has to say of what stays dense."""


def build(name: str, seed: int = 1) -> nn.Module:
    config, model, sizes, _ = MODELS[name]
    if "decoder_start_token_id" not in sizes and config == "T5Config":
        sizes = {**sizes, "decoder_start_token_id": 0}
    torch.manual_seed(seed)
    made: nn.Module = getattr(hf, model)(getattr(hf, config)(**sizes)).eval()  # no dropout, so that outputs compare
    return made


def inputs(name: str) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(5)
    if name == "ViT":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=random), "labels": torch.tensor([0, 1])}
    if name == "Wav2Vec2":
        return {"input_values": torch.randn(2, 300, generator=random), "labels": torch.tensor([[3, 4], [5, 6]])}
    ids = torch.randint(3, 96, (2, 12), generator=random)
    if name == "Whisper":
        return {"input_features": torch.randn(2, 8, 32, generator=random), "labels": ids}
    return {"input_ids": ids, "labels": ids}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize("name", MODELS)
def test_it_becomes_the_dense_model_with_zeros_trains_through_updates_and_is_loaded_as_saved(
    name: str, tmp_path: Path
) -> None:
    dense = build(name)
    config = SmetConfig(density=0.5, update_interval=5, stop_fraction=1.0, warmup_steps=2, fan_in_init=False)
    model = copy.deepcopy(dense)
    report = sparsify(model, config)
    for line in MODELS[name][3]:
        assert line in str(report)
    layers = sparse_layers(model)
    dense.load_state_dict(smet.hf.dense(copy.deepcopy(model)).state_dict())
    batch = inputs(name)
    torch.testing.assert_close(model(**batch).logits, dense(**batch).logits, rtol=1e-4, atol=1e-4)

    model.train()
    optimizer = SmetAdamW(parameter_groups(model, config), lr=3e-3, remedies=Remedies(warmup_steps=2))
    topology = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), total_steps=20)
    before = {path: layer.packed_mask().clone() for path, layer in layers.items()}
    losses = []
    for _ in range(20):
        topology.before_step()
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.item())
        assert all(layer.values.grad is not None for layer in layers.values())
        optimizer.step()
        optimizer.zero_grad()
        topology.after_step()
    assert sum(losses[-3:]) < sum(losses[:3]), losses
    assert topology.updates_done == 4
    assert all(not torch.equal(before[path], layer.packed_mask()) for path, layer in layers.items())

    trained = loss_of(model.eval(), batch)
    twin = sparsify(build(name, seed=2), config, quiet=True).model
    twin.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    for again in (twin, type(model).from_pretrained(tmp_path)):  # type: ignore[attr-defined]
        assert torch.equal(loss_of(again, batch), trained)


def test_every_matrix_weight_is_either_sparse_or_named() -> None:
    for name in MODELS:
        model = build(name)
        total = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        report = sparsify(model, SmetConfig(density=0.5), quiet=True)
        assert report.weights == total == report.sparse_weights + sum(one.weights for one in report.left_dense), name
        assert all(one.reason for one in report.left_dense)


def test_a_model_of_which_less_than_half_becomes_sparse_warns() -> None:
    for name, least in (("LLaMA", 0.5), ("Mixtral", 0.88), ("Qwen3-MoE", 0.8)):
        report = sparsify(build(name), SmetConfig())
        assert report.share > least and not report.warnings
    report = sparsify(nn.Sequential(nn.Embedding(100, 48), nn.Linear(48, 48)), SmetConfig())
    share = report.share
    assert share < 0.5
    (warning,) = report.warnings
    assert warning.startswith(f"only {share:.0%} of the model's matrix weights are in sparse layers")
