"""``torch.compile`` of sparse models: one graph, the same losses, and no other graph when the topology changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import smet
from smet import SmetConfig, sparsify
from smet.convert import Piece
from smet.hf import SmetCallback
from tests.distributed import run_ranks
from tests.smet.front_door import KINDS, Door, accumulating, batch, ordinary, with_scaler

GRAPHS = {"fullgraph": True, "backend": "aot_eager"}


@pytest.fixture(autouse=True)
def one_graph() -> Iterator[None]:
    """No test compiles anything twice."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def graphs() -> int:
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("kind", "loop"),
    [("random growth", ordinary), ("growth by gradients", with_scaler), ("growth by mean gradients", accumulating)],
)
def test_topology_updates_compile_nothing_again(kind: str, loop: Any) -> None:
    """Five updates or more, by criteria that collect dense gradients and by one that does not."""
    plain, compiled = Door(**KINDS[kind]), Door(**KINDS[kind])
    compiled.model = torch.compile(compiled.model, **GRAPHS)
    expected, found = loop(plain), loop(compiled)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert compiled.topology.updates_done == plain.topology.updates_done >= 4
    assert compiled.topology.mask_digest() == plain.topology.mask_digest()
    assert graphs() == 1


def test_a_compiled_step_is_the_step_as_it_is() -> None:
    """Clock, step sizes and topology are no constants of a graph: torch is to leave the step alone."""
    plain, compiled = Door(**KINDS["growth by gradients"]), Door(**KINDS["growth by gradients"])

    step, found = torch.compile(compiled.optimizer.step, backend="aot_eager"), []
    with torch._dynamo.config.patch(error_on_recompile=False):  # of nothing but the call
        for number in range(12):
            x = batch(number)
            loss = nn.functional.mse_loss(compiled.model(x), x)
            loss.backward()
            step()
            compiled.optimizer.zero_grad()
            found.append(loss.item())
    assert found == ordinary(plain, last=12)
    assert compiled.topology.updates_done == plain.topology.updates_done == 2
    assert compiled.topology.mask_digest() == plain.topology.mask_digest()


LAYERS: dict[str, dict[str, Any]] = {
    "tiles": {"density": 0.3, "block": (8, 16), "balance": "never"},
    "permuted": {"density": 0.4, "block": (4, 2), "permute": "both"},
    "falling": {"density": 0.2, "initial_density": 0.5},
    "full": {"density": 1.0},
    "kept": {"density": 0.3, "weight_residency": "dense"},
}


@pytest.mark.parametrize("kind", LAYERS)
def test_graphs_compute_what_layers_do(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16))
    sparsify(model, SmetConfig(**LAYERS[kind]), piece=Piece(transposed=("2",)), quiet=True)
    compiled = torch.compile(model, **GRAPHS)
    x = torch.randn(2, 40, 32)
    results = []
    for run in (model, compiled):
        own = x.clone().requires_grad_()
        y = run(own)
        results.append([y, *torch.autograd.grad(y.square().sum(), [own, *model.parameters()])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    assert graphs() == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


def test_layers_of_one_shape_share_a_graph() -> None:
    """Blocks that are compiled one by one, as is usual, need one graph between them and not one each."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(10))
    sparsify(blocks, density=0.3, quiet=True)
    x = torch.randn(4, 16, requires_grad=True)
    expected = copy.deepcopy(blocks)
    for block in blocks:
        block.compile(**GRAPHS)
    y, z = x, x
    for block, other in zip(blocks, expected, strict=True):
        y, z = block(y), other(z)
    torch.testing.assert_close(y, z)
    assert graphs() == 1


def test_autocast_and_reading_of_weights_in_a_graph() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 32)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x).to(self.inner.weight.dtype)
            return y @ self.inner.weight

    torch.manual_seed(0)
    model = Reader()
    sparsify(model, density=0.3, quiet=True)
    x = torch.randn(4, 16)
    results = []
    for run in (model, torch.compile(model, **GRAPHS)):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), list(model.parameters()))])
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-2)
    assert graphs() == 1


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def test_a_llama_of_transformers_is_one_graph_before_and_after_an_update() -> None:
    losses: list[list[float]] = []
    for compiled in (False, True):
        model = llama()
        sparsify(model, density=0.25, update_interval=2, warmup_steps=4, quiet=True)
        optimizer = smet.AdamW(model, lr=1e-2)
        run = smet.attach(optimizer, 4)
        if compiled:
            model.compile(**GRAPHS)
        losses.append([])
        for number in range(4):
            tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(number))
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
        assert run.updates_done
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert graphs() == 1


@pytest.mark.slow
def test_torchs_own_compiler_of_kernels_takes_the_graph() -> None:
    """All other tests run the graphs by eager kernels, since this compiles C++."""
    plain, compiled = Door(**KINDS["growth by gradients"]), Door(**KINDS["growth by gradients"])
    compiled.model = torch.compile(compiled.model, fullgraph=True)
    torch.testing.assert_close(ordinary(compiled), ordinary(plain), rtol=1e-6, atol=0)
    assert compiled.topology.mask_digest() == plain.topology.mask_digest()
    assert graphs() == 1


def under_ddp() -> list[tuple[list[float], str, int]]:
    """Losses, masks and graphs of a model as it is, and compiled."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        loop = Door(**KINDS["growth by gradients"])
        inner = torch.compile(loop.model, **GRAPHS) if compiled else loop.model
        loop.model = DistributedDataParallel(inner)  # type: ignore[arg-type]
        with torch._dynamo.config.patch(error_on_recompile=True):
            losses = ordinary(loop, last=12)
        found.append((losses, loop.topology.mask_digest(), graphs()))
    return found


@pytest.mark.slow
def test_two_ranks_under_ddp_compile_one_graph_each() -> None:
    for plain, compiled in run_ranks(under_ddp, 2):
        torch.testing.assert_close(compiled[0], plain[0], rtol=1e-6, atol=0)
        assert compiled[1] == plain[1] and (plain[2], compiled[2]) == (0, 1)


class Losses(hf.TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        self.seen += [logs["loss"]] if "loss" in logs else []


@pytest.mark.slow
def test_a_trainer_that_compiles_its_model(tmp_path: Path) -> None:
    tokens = torch.randint(0, 96, (32, 12), generator=torch.Generator().manual_seed(1))
    losses = []
    for compiled in (False, True):
        model, told = llama(), Losses()
        sparsify(model, method="rigl", density=0.25, update_interval=3, quiet=True)
        options = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        args = hf.TrainingArguments(
            str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, **options,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = hf.Trainer(model, args, train_dataset=rows, callbacks=[told])
        trainer.add_callback(SmetCallback(trainer))
        with torch._dynamo.config.patch(error_on_recompile=False):  # by transformers: whether it counts tokens
            trainer.train()
        losses.append(told.seen)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert len(losses[0]) == 8 and graphs() == 2


def test_what_a_graph_cannot_take_is_named() -> None:
    from tests.smet.test_operators import Elsewhere

    model = nn.Sequential(nn.Linear(16, 16))
    sparsify(model, density=0.3, quiet=True)
    with pytest.raises(Exception, match="the input of a sparse layer is a Elsewhere, expected a plain tensor"):
        torch.compile(model, **GRAPHS)(Elsewhere(batch(0)))
