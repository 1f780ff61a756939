"""Small sparse models trained under ZeRO or in plain torch, and what a rank can report of them.

Everything here runs inside the ranks that ``tests.distributed.run_ranks`` starts; results are
plain Python and numpy, so that the test process can compare runs of different layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smet import (
    LocalStore,
    MaskBank,
    Remedies,
    SmetAdamW,
    SmetConfig,
    SparseLinear,
    TopologyController,
    parameter_groups,
    sparsify,
)
from smet.mask import unpack

VOCAB, HIDDEN, WIDTHS = 64, 32, (48, 64, 80)
STEPS, INTERVAL, MICRO_BATCHES, MICRO_ROWS = 7, 2, 2, 8
"""Three topology updates, and a step after the last."""


@dataclass(frozen=True)
class Case:
    """One run. ``settings`` are those of ``SmetConfig`` on top of the defaults below."""

    stage: int
    """ZeRO stage; 0 = plain torch in one process."""
    block: tuple[int, int] = (1, 1)
    precision: str = "fp32"
    persistent: bool = False
    """Stage 3: let DeepSpeed keep small parameters gathered."""
    checkpointing: bool = False
    offload: bool = False
    """Let DeepSpeed keep master weights, optimizer state and the gradients of a partition in host memory."""
    snapshots: bool = False
    steps: int = STEPS
    settings: tuple[tuple[str, Any], ...] = ()

    def config(self) -> SmetConfig:
        """Odd on purpose: with density 0.23 no rank count divides the number of active weights or blocks."""
        base: dict[str, Any] = {
            "density": 0.23, "block": self.block, "update_interval": INTERVAL, "warmup_steps": 4,
            "stop_fraction": 1.0, "prune_schedule": "constant", "exclude": ("embed", "*norm", "head"),
            "balance": "never", "prune_start": 0.2,
        }  # fmt: skip
        return SmetConfig(**{**base, **dict(self.settings)}).check()


class Layer(nn.Module):
    """Norm, up, down; the first also mixes, so that the number of sparse layers is odd."""

    def __init__(self, width: int, mix: bool, frozen: bool):
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up_proj = nn.Linear(HIDDEN, width)
        self.down_proj = nn.Linear(width, HIDDEN, bias=False)
        self.mix = nn.Linear(HIDDEN, HIDDEN, bias=False) if mix else None
        self.frozen = nn.Linear(HIDDEN, HIDDEN) if frozen else None
        if self.frozen is not None:
            self.frozen.requires_grad_(False)

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm(h)
        h = h + self.down_proj(F.silu(self.up_proj(x)))
        h = h if self.mix is None else h + self.mix(x)
        return h if self.frozen is None else h + self.frozen(x)


class Tiny(nn.Module):
    """Seven trainable sparse layers of four shapes, and a frozen one."""

    def __init__(self, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer(width, index == 0, index == 2) for index, width in enumerate(WIDTHS))
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        h = self.embed(tokens)
        for layer in self.layers:
            h = checkpoint(layer, h, use_reentrant=False) if self.checkpointing else layer(h)
        return F.cross_entropy(self.head(self.norm(h)).float().view(-1, VOCAB), targets.view(-1))


def batch(step: int, micro: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets ``(rows, 16)`` of one micro-batch over all ranks."""
    rng = torch.Generator().manual_seed(1000 * step + micro)
    tokens = torch.randint(0, VOCAB, (MICRO_ROWS, 16), generator=rng)
    return tokens, (7 * tokens + 3) % VOCAB


def build(case: Case) -> tuple[nn.Module, SmetAdamW]:
    """The model and its optimizer, before any engine."""
    torch.manual_seed(0)
    config = case.config()
    model = sparsify(Tiny(case.checkpointing), config).model
    remedies = Remedies(config.bias_correction, config.warmup_steps, config.warmup_scope)
    groups = parameter_groups(model, config, weight_decay=0.05)
    return model, SmetAdamW(groups, lr=5e-3, remedies=remedies, external_clock=case.stage > 0)


def deepspeed_config(case: Case, ranks: int) -> dict[str, Any]:
    """Clipping on; stage 3 cut into several sub-groups, each with an optimizer call of its own."""
    zero: dict[str, Any] = {"stage": case.stage}
    if case.stage == 3:
        zero |= {"sub_group_size": 1500, "stage3_param_persistence_threshold": 10**6 if case.persistent else 0}
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": MICRO_ROWS // ranks,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": case.precision == "bf16"},
    }


@dataclass
class Session:
    """A run that can be stepped, under ZeRO or (stage 0) in plain torch."""

    case: Case
    rank: int = 0
    ranks: int = 1
    engine: Any = None
    poison: Callable[[int], None] = lambda step: None
    """Called before each step; may plant something."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model, self.optimizer = build(self.case)
        self.store: Any
        if self.case.stage == 0:
            self.store = LocalStore(self.optimizer)
        else:
            import deepspeed

            from smet.zero import ZeroStore

            self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
            self.engine, *_ = deepspeed.initialize(
                model=self.model, optimizer=self.optimizer, config=deepspeed_config(self.case, self.ranks)
            )
            self.store = ZeroStore(self.engine)
        config = self.case.config()
        self.bank = MaskBank(self.model, self.store.group, replicated=config.mask_residency == "replicated")
        self.controller = TopologyController(self.model, config, self.store, self.bank, self.case.steps)

    @property
    def layers(self) -> dict[str, SparseLinear]:
        """The sparse layers whose topology changes."""
        return self.controller.layers

    def micro_batch(self, step: int, micro: int) -> float:
        """Forward and backward (and, under DeepSpeed, a step at the boundary); returns this rank's loss."""
        tokens, targets = (t.chunk(self.ranks)[self.rank] for t in batch(step, micro))
        if self.engine is None:
            loss = self.model(tokens, targets)
            (loss / MICRO_BATCHES).backward()
            return loss.item()
        loss = self.engine(tokens, targets)
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.item())

    def step(self, step: int) -> None:
        """One optimizer step, followed by a topology update where one is due."""
        self.controller.before_step()
        self.poison(step)
        loss = torch.tensor(sum(self.micro_batch(step, micro) for micro in range(MICRO_BATCHES)) / MICRO_BATCHES)
        if self.engine is None:
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            norm = self.store.gradient_norm()
            dist.all_reduce(loss)
        self.norms.append(norm)
        self.losses.append(loss.item() / self.ranks)
        before = self.snapshot() if self.case.snapshots else {}
        report = self.controller.after_step()
        if report is not None:
            self.reports.append(report.to_json())
        if self.case.snapshots:
            self.snapshots.append((before, self.snapshot()))

    def train(self) -> Session:
        """All steps."""
        for step in range(self.case.steps):
            self.step(step)
        return self

    def dense_weight(self, layer: SparseLinear) -> Tensor:
        """What the layer computes with, canonical ``(rows, cols)``."""
        if self.case.stage != 3:
            return layer.canonical_weight(layer.values.detach())
        if self.case.persistent:  # as it stands between steps, not gathered anew
            assert layer.values.numel() == layer.active * layer.grid.tile_size, "meant to be kept gathered"
            return layer.canonical_weight(layer.values.detach())
        import deepspeed

        with deepspeed.zero.GatheredParameters([layer.values]):
            return layer.canonical_weight(layer.values.detach().clone())

    def whole(self, layer: SparseLinear) -> dict[str, np.ndarray]:
        """Master weights and state of every active weight, put together from all ranks by way of pickles."""
        fragment = self.store.fragment(layer.values)
        own = {"weight": fragment.master, **fragment.state}
        pieces: list[Any] = [(fragment.start, {key: value.numpy().copy() for key, value in own.items()})]
        if self.ranks > 1:
            pieces = [None] * self.ranks
            dist.all_gather_object(pieces, (fragment.start, {key: value.numpy() for key, value in own.items()}))
        whole = {key: np.zeros(fragment.total, dtype=value.dtype) for key, value in pieces[0][1].items()}
        owners = np.zeros(fragment.total, dtype=int)
        for start, piece in pieces:
            owners[start : start + piece["weight"].size] += 1
            for key, value in piece.items():
                whole[key][start : start + value.size] = value
        assert (owners == 1).all(), "every active weight has exactly one owner"
        births = self.optimizer.ages.births
        whole["birth"] = np.array([-1 if step is None else step for step in births])[whole["birth"]]
        return whole

    def snapshot(self) -> dict[str, Any]:
        """Everything that the invariants speak of, by layer name."""
        found: dict[str, Any] = {"steps": self.optimizer.steps_done}
        for name, layer in self.layers.items():
            mask = unpack(self.bank.bits(layer), layer.grid.tiles)
            tiles = layer.grid.to_tiles(self.dense_weight(layer)).float().numpy()
            found[name] = {"mask": mask.numpy(), "dense": tiles, **self.whole(layer)}
        return found

    def summary(self) -> dict[str, Any]:
        """What runs of other layouts are compared by."""
        fragments = {name: self.store.fragment(layer.values) for name, layer in self.layers.items()}
        return {
            "losses": self.losses,
            "norms": self.norms,
            "digests": [report["digest"] for report in self.reports],
            "replaced": [report["pruned"] for report in self.reports],
            "masks": {name: self.bank.bits(layer).numpy().copy() for name, layer in self.layers.items()},
            "ranges": {name: fragment.range for name, fragment in fragments.items()},
            "snapshots": self.snapshots,
            "dtypes": {str(tensor.dtype) for kind, _, tensor in self.held() if kind in ("master", "moments")},
            "weights": {str(tensor.dtype) for kind, _, tensor in self.held() if kind == "weights"},
        }

    def held(self) -> Iterator[tuple[str, str, Tensor]]:
        """Live tensors of the store."""
        yield from self.store.live_tensors()


def run_cases(cases: list[Case]) -> dict[Case, dict[str, Any]]:
    """Train every case in one set of processes; for ``run_ranks``."""
    return {case: Session(case).train().summary() for case in cases}


def blocks_that_differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[int, int]:
    """(blocks that differ, blocks) between two models' packed masks."""
    differ = sum(int(np.unpackbits(a[name] ^ b[name]).sum()) for name in a)
    return differ, sum(mask.size * 8 for mask in a.values())
