"""A transformers model under ``fully_shard``: what all ranks gather and one saves is what AutoModel loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed import run_ranks

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(seed))


def train_and_save(folder: str) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    import smet.hf  # noqa: F401

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    smet.sparsify(model, method="smet-rigl", density=0.25, update_interval=3, warmup_steps=2, quiet=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
    optimizer = smet.AdamW(model, lr=1e-3)
    run = smet.attach(optimizer, total_steps=8)
    for step in range(8):
        rows = tokens(10 * step + dist.get_rank())
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        loss = model(input_ids=tokens(1), labels=tokens(1)).loss.item()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(folder, state_dict=whole)
    return {"loss": loss, "updates": run.updates_done, "masks": run.topology.mask_digest()}


@pytest.mark.slow
def test_what_ranks_gather_and_one_saves_loads_in_automodel_with_the_trained_loss(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    import smet.hf  # noqa: F401

    first, second = run_ranks(train_and_save, 2, str(tmp_path))
    assert first == second and first["updates"] == 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(model.model.layers[0].mlp.up_proj, smet.SparseLinear)
    with torch.no_grad():
        loss = model(input_ids=tokens(1), labels=tokens(1)).loss.item()
    assert loss == pytest.approx(first["loss"], abs=1e-6)
