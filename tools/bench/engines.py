"""The two sides of the comparison: a SMET engine, and a genuinely dense model under DeepSpeed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from pretrain.build import LossModel, build_engine, deepspeed_config
from pretrain.config import RunConfig
from pretrain.engine import Engine, PlainEngine
from pretrain.layout import Layout
from pretrain.models import family_of
from pretrain.models.init import initialize
from pretrain.products import micro_batch
from smet import MaskBank, TopologyController, compute
from smet.linear import SparseLinear, sparse_layers
from smet.measured import measure as measure_products
from smet.memory import Table, measure
from smet.patterns import selects
from smet.zero import ZeroStore

from .options import Options

DENSE_OPTIMIZERS = ("torch fused AdamW", "DeepSpeedCPUAdam")


class Side(ABC):
    """An engine that can be stepped and measured."""

    engine: Engine
    products = "dense"
    """Who multiplies."""

    @abstractmethod
    def step(self, batches: list[Tensor]) -> float:
        """One optimizer step with all that belongs to it; the loss. Collective."""

    @abstractmethod
    def at_rest(self, batches: list[Tensor]) -> Table:
        """Bytes at rest on this rank by part and kind, after a step in which the gradients are counted. Collective."""


class SparseSide(Side):
    """A SMET run without its callbacks."""

    def __init__(self, options: Options, layout: Layout, **sparsity: str):
        config = options.config(Path("unused"), **sparsity)
        self.engine = build_engine(config, layout, deepspeed_config(config, layout.dp_size))
        replicated = config.sparsity.mask_residency == "replicated"
        self.bank = MaskBank(self.engine.model, layout.group, replicated=replicated)
        self.topology = TopologyController(
            self.engine.model, config.sparsity, self.engine.store, self.bank, config.train.steps
        )
        layers, inputs = self.layers.values(), micro_batch(config)
        measure_products(layers, *inputs, layout.gather_objects, layout.is_main)
        self.products = compute.describe(layers, *inputs)

    @property
    def layers(self) -> dict[str, SparseLinear]:
        """The sparse layers by name."""
        return sparse_layers(self.engine.model)

    def step(self, batches: list[Tensor]) -> float:
        """See ``Side``."""
        self.topology.before_step()
        loss: float = self.engine.train_step(batches)
        self.topology.after_step()
        return loss

    def at_rest(self, batches: list[Tensor]) -> Table:
        """See ``Side``."""
        return _at_rest(self, batches, self.bank, self.layers)


class DenseSide(Side):
    """LLaMA of ``nn.Linear`` layers under DeepSpeed, at the ZeRO stage of the other side."""

    def __init__(self, options: Options, layout: Layout, optimizer: str):
        config = options.config(Path("unused"))
        with torch.device("meta"):
            model = family_of(config.model).model.Model(config.model)
        model.to_empty(device="cpu")
        initialize(model, config.model, seed=config.train.seed)
        groups = list(_groups(model, config))
        client: Any = torch.optim.AdamW(groups, lr=config.optimizer.lr, weight_decay=0.0, fused=True)
        if optimizer == "DeepSpeedCPUAdam":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            client = DeepSpeedCPUAdam(groups, lr=config.optimizer.lr, weight_decay=0.0, adamw_mode=True)
        settings = deepspeed_config(config, layout.dp_size)
        engine, *_ = deepspeed.initialize(model=LossModel(model), optimizer=client, config=settings)
        self.engine = PlainEngine(engine, model, layout, _AnyStore(engine))

    def step(self, batches: list[Tensor]) -> float:
        """See ``Side``."""
        return self.engine.train_step(batches)

    def at_rest(self, batches: list[Tensor]) -> Table:
        """See ``Side``."""
        return _at_rest(self, batches, MaskBank(nn.Module()), {})


def _groups(model: nn.Module, config: RunConfig) -> Iterator[dict[str, Any]]:
    """Parameters of the layers that SMET makes sparse, under that name, and all others."""
    chosen = {f"{name}.weight" for name, _ in model.named_modules() if selects(name, config.sparsity)}
    named = list(model.named_parameters())
    yield {"name": "sparse", "params": [parameter for name, parameter in named if name in chosen]}
    yield {"name": "dense", "params": [parameter for name, parameter in named if name not in chosen]}


class _AnyStore(ZeroStore):
    """The walk over ZeRO's live tensors, for any optimizer."""

    def __init__(self, engine: Any):
        self.engine, self.zero = engine, engine.optimizer
        self.optimizer = self.zero.optimizer
        self.stage3 = type(self.zero).__name__ == "DeepSpeedZeroOptimizer_Stage3"

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """As of any store; the step counts that other optimizers keep are no tensors, or one number."""
        yield from (entry for entry in super().live_tensors() if torch.is_tensor(entry[2]) and entry[2].numel() > 1)


def _at_rest(side: Side, batches: list[Tensor], bank: MaskBank, layers: dict[str, SparseLinear]) -> Table:
    gradients: list[Table] = []
    store = side.engine.store
    end = side.engine.before_update(lambda: gradients.append(measure(store, bank, layers)))
    side.step(batches)
    end()
    bank.release()
    table = measure(store, bank, layers)
    for part, kinds in table.items():
        kinds["gradients"] = gradients[-1][part]["gradients"]
    return table


def random_batches(options: Options, layout: Layout) -> list[Tensor]:
    """One micro-batch of random token ids ``(b, s + 1)`` for this rank."""
    vocabulary = options.config(Path("unused")).model.vocab_size
    generator = torch.Generator().manual_seed(layout.rank)
    return [torch.randint(0, vocabulary, (options.micro_batch, options.sequence + 1), generator=generator)]
