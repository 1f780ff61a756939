"""Formulas for activations and transients against what autograd saves and a topology update holds."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pretrain.config import RunConfig, config_from_dict
from pretrain.data.boundaries import document_bias, document_numbers
from pretrain.models import functions
from pretrain.models.inventory import Role
from pretrain.models.llama.model import LlamaForCausalLM
from pretrain.models.parts import mean_cross_entropy
from pretrain.plan import Rank, blocks_of
from pretrain.plan.memory import activations, topology_update, transients
from pretrain.plan.sizes import PlannedWeight
from smet import LocalStore, MaskBank, SmetAdamW, SmetConfig, TopologyController, parameter_groups, sparsify

ROWS, LENGTH = 2, 128


def config(precision: str = "bf16", **sections: dict[str, Any]) -> RunConfig:
    run: dict[str, dict[str, Any]] = {
        "model": {
            "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 4,
        },
        "data": {"train": "data/corpus", "seq_length": LENGTH},
        "optimizer": {"lr": 0.003},
        "train": {"steps": 10, "global_batch_size": 16, "micro_batch_size": ROWS, "precision": precision,
                  "output_dir": "runs/test"},
    }  # fmt: skip
    for name, keys in sections.items():
        run[name] = {**run.get(name, {}), **keys}
    return config_from_dict(run)


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for ``module(x).backward()``, parameters and rotary tables left out."""
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape != (LENGTH, 32) or tensor.dtype != torch.float32:  # all layers share the rotary tables
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(x)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)
    del result
    return total


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_decoder_layers(precision: str, checkpointing: bool) -> None:
    run = config(precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = LlamaForCausalLM(run.model, activation_checkpointing=checkpointing)
    layers = nn.Sequential(*sparsify(model, run.sparsity).model.model.layers).to(dtype)
    x = torch.randn(ROWS, LENGTH, run.model.hidden_size, dtype=dtype, requires_grad=True)
    blocks = [block for block in blocks_of(run) if block.is_layer]
    planned = activations(run, blocks, checkpointing, sequence=False)
    assert saved_bytes(layers, x) == pytest.approx(planned.layers, rel=0.01)
    if checkpointing:
        one = activations(run, blocks[:1], checkpointing=False, sequence=False)
        assert planned.recomputed == one.layers


@pytest.mark.parametrize("permute", ["none", "both"])
def test_permuted_features_add_one_copy_of_what_attention_gives(permute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that others read stand where what they are copies of stood."""
    monkeypatch.setattr(functions, "MOST_SCORES", 0)  # attention as on a GPU
    run = config(sparsity={"block": [16, 16], "permute": permute})
    model = LlamaForCausalLM(run.model)
    layers = nn.Sequential(*sparsify(model, run.sparsity).model.model.layers).to(torch.bfloat16)
    x = torch.randn(ROWS, LENGTH, run.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    planned = activations(run, [block for block in blocks_of(run) if block.is_layer], False, sequence=False)
    assert saved_bytes(layers, x) == pytest.approx(planned.layers, rel=0.01)


class WithinDocuments(nn.Module):
    """Decoder layers under one bias."""

    def __init__(self, layers: nn.Module, bias: Tensor):
        super().__init__()
        self.layers, self.bias = layers, bias

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.children():
            x = layer(x, self.bias)
        return x


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_layers_share_the_bias_that_keeps_documents_apart(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "MOST_SCORES", 0)  # attention as on a GPU
    run = config(data={"reset_attention": True, "eos_id": 2})
    model = LlamaForCausalLM(run.model, activation_checkpointing=checkpointing)
    layers = nn.Sequential(*sparsify(model, run.sparsity).model.model.layers).to(torch.bfloat16)
    tokens = torch.randint(0, 9, (ROWS, LENGTH))
    x = torch.randn(ROWS, LENGTH, run.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    blocks = [block for block in blocks_of(run) if block.is_layer]
    planned = activations(run, blocks, checkpointing, sequence=False)
    bias = document_bias(document_numbers(tokens, 2), torch.bfloat16)
    assert saved_bytes(WithinDocuments(layers, bias), x) == pytest.approx(planned.layers, rel=0.01)


class Ends(nn.Module):
    """Final norm, head and loss."""

    def __init__(self, model: LlamaForCausalLM, targets: Tensor):
        super().__init__()
        self.norm, self.head, self.targets = model.model.norm, model.lm_head, targets

    def forward(self, x: Tensor) -> Tensor:
        return mean_cross_entropy(self.head(self.norm(x)), self.targets)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_of_the_loss(precision: str) -> None:
    run = config(precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ends = Ends(LlamaForCausalLM(run.model), torch.randint(0, run.model.vocab_size, (ROWS, LENGTH))).to(dtype)
    x = torch.randn(ROWS, LENGTH, run.model.hidden_size, dtype=dtype, requires_grad=True)
    planned = activations(run, blocks_of(run)[-2:], checkpointing=False, sequence=False)
    assert saved_bytes(ends, x) == pytest.approx(planned.ends, rel=0.02)


class Peak(TorchDispatchMode):
    """Bytes of the tensors made inside, at their fullest moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if torch.is_tensor(tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes or size == 0:
            return
        self.sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("block", [(1, 1), (1, 4)])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
def test_topology_update_stays_within_its_plan(block: tuple[int, int], density: float) -> None:
    settings = SmetConfig(density=density, update_interval=1, block=block, stop_fraction=1.0, exclude=())
    model = nn.Sequential(nn.Linear(512, 1024, bias=False))
    sparsify(model, settings)
    optimizer = SmetAdamW(parameter_groups(model, settings))
    topology = TopologyController(model, settings, LocalStore(optimizer), MaskBank(model), 100)
    model(torch.randn(4, 512)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with Peak() as held:
        topology.update()
    layer = PlannedWeight(
        name="0", total=512 * 1024, stored=model[0].values.numel(), group="sparse-x", role=Role.COLUMN, aged=True
    )
    run = config(sparsity={"block": list(block)})
    planned = topology_update(run, [layer], ranks=1)
    assert 0.8 * planned <= held.peak <= 1.1 * planned


def test_the_loss_peaks_at_its_plan() -> None:
    run = config()
    ends = Ends(LlamaForCausalLM(run.model), torch.randint(0, run.model.vocab_size, (ROWS, LENGTH))).bfloat16()
    x = torch.randn(ROWS, LENGTH, run.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    ends(x).backward()  # gradients exist from here on
    with Peak() as held:
        ends(x).backward()
    blocks = blocks_of(run)[-2:]
    planned = (
        activations(run, blocks, checkpointing=False, sequence=False).ends
        + transients(Rank(run, blocks, 1, 1))["logits"]
        + 2 * ends.head.weight.numel()  # its gradient, before it is added to what exists
    )
    assert 0.8 * planned <= held.peak <= 1.2 * planned


def test_choices_cut_what_they_say() -> None:
    split = config(parallel={"tensor": 4, "zero_stage": 1})
    whole = config()
    layer = blocks_of(whole)[1:2]
    plain = activations(whole, layer, False, False).layers
    shared = activations(split, blocks_of(split)[1:2], False, False).layers
    sequence = activations(split, blocks_of(split)[1:2], False, True).layers
    kept = activations(split, blocks_of(split)[1:2], True, True).layers
    assert plain > shared > sequence > kept == ROWS * LENGTH * 256 * 2 // 4
