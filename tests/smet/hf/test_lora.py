"""peft's adapters beside sparse layers: they train alone, are loaded again, and are merged into dense weights only."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

import smet
import smet.hf
from smet import ConfigError
from tests.smet.test_transformers_models import build, inputs, loss_of


def test_adapters_train_beside_frozen_values_are_loaded_and_merged_once_the_base_is_dense(tmp_path: Path) -> None:
    base = smet.sparsify(build("LLaMA"), density=0.5, quiet=True).model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = smet.hf.beside_sparse(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Unsupported layer type")
        model = get_peft_model(base, config)
    assert not any(layer.values.requires_grad for layer in smet.sparse_layers(model).values())
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(model, inputs("LLaMA"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    trained = loss_of(model, inputs("LLaMA"))

    again = smet.sparsify(build("LLaMA"), density=0.5, quiet=True).model
    loaded = PeftModel.from_pretrained(
        again, tmp_path, config=smet.hf.beside_sparse(PeftConfig.from_pretrained(tmp_path))
    )
    assert torch.equal(loss_of(loaded, inputs("LLaMA")), trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in build_state(model).items())
    with pytest.raises(ConfigError, match=r"merged into a sparse layer.*call smet.hf.dense\(model\) before merge"):
        model.merge_and_unload()
    merged = smet.hf.dense(model).merge_and_unload()
    torch.testing.assert_close(loss_of(merged, inputs("LLaMA")), trained)
    assert type(merged.model.layers[0].mlp.down_proj) is torch.nn.Linear


def build_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Of the base, by its own names."""
    state = model.get_base_model().state_dict()
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if "lora_" not in name}


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_beginnings_that_take_from_the_base_are_refused(start: str) -> None:
    with pytest.raises(ConfigError, match=f"init_lora_weights is '{start}', expected true, false, or one of gaussian"):
        smet.hf.beside_sparse(LoraConfig(init_lora_weights=start))
    with pytest.raises(ConfigError, match="was given a dict, expected a peft.LoraConfig"):
        smet.hf.beside_sparse({"init_lora_weights": start})


def test_the_targets_among_which_peft_counts_no_sparse_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="target_modules is 'all-linear', with which peft passes over sparse layers"):
        smet.hf.beside_sparse(LoraConfig(target_modules="all-linear"))
