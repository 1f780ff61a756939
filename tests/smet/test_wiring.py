"""Parts that do not belong together, and tensors that are not what they look like: one line each, nothing crashes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    kernels,
    parameter_groups,
    sparsify,
)
from smet.kernels import tiles
from smet.mask import TileGrid
from tests.distributed import run_ranks

CONFIG = SmetConfig(density=0.25, update_interval=5)


def sparse_model(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, **options), nn.ReLU(), nn.Linear(32, 32, **options))
    sparsify(model, CONFIG)
    return model


def controller(model: nn.Module, optimizer: Any, **changes: Any) -> TopologyController:
    parts = {"store": LocalStore(optimizer), "bank": MaskBank(model), **changes}
    return TopologyController(model, CONFIG, parts["store"], parts["bank"], 20)


class Around:
    """A wrapper, as accelerate puts one around an optimizer."""

    def __init__(self, optimizer: SmetAdamW):
        self.optimizer = optimizer


WRONG: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "groups of model.parameters()": (
        lambda m: controller(m, SmetAdamW(m.parameters())),
        r"do not age the values of 2 of 2 sparse layers \(0, 2\), whose topology changes; make the optimizer over "
        r"parameter_groups\(model, config\)",
    ),
    "torch's AdamW": (
        lambda m: controller(m, torch.optim.AdamW(m.parameters(), fused=True)),
        r"optimizer is a torch.optim.adamw.AdamW, expected smet.SmetAdamW over smet.parameter_groups",
    ),
    "a wrapped optimizer": (
        lambda m: controller(m, Around(SmetAdamW(parameter_groups(m, CONFIG)))),
        r"expected the SmetAdamW inside it: LocalStore\(optimizer.optimizer\)",
    ),
    "the optimizer of another model": (
        lambda m: controller(m, SmetAdamW(parameter_groups(sparse_model(), CONFIG))),
        "0: a parameter of shape .256,. is not in the optimizer; make the optimizer over parameter_groups.*; 2: a",
    ),
    "an optimizer in place of a store": (
        lambda m: controller(m, SmetAdamW(parameter_groups(m, CONFIG)), store=SmetAdamW(m.parameters())),
        r"store is a SmetAdamW, expected LocalStore\(optimizer\) or ZeroStore\(engine\)",
    ),
    "no bank": (
        lambda m: controller(m, SmetAdamW(parameter_groups(m, CONFIG)), bank=None),
        r"bank is a NoneType, expected MaskBank\(model\)",
    ),
    "complex weights": (
        lambda m: SmetAdamW(nn.Linear(3, 3, dtype=torch.complex64).parameters()),
        "parameter 0 of group '0' is torch.complex64, expected a real floating-point type",
    ),
    "weights on the meta device": (
        lambda m: SmetAdamW(nn.Linear(3, 3, device="meta").parameters()),
        "parameter 0 of group '0' is on the meta device; materialise the model before",
    ),
    "a state of torch's AdamW": (
        lambda m: SmetAdamW(m.parameters()).load_state_dict(torch.optim.AdamW(m.parameters()).state_dict()),
        "has the entries state, param_groups and no 'smet', expected one saved by the same optimizer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_belong_together_is_one_line(case: str) -> None:
    build, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as caught:
        build(sparse_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr of group 'mine' is -1.0, expected a number of 0 or more"),
        ({"lr": float("nan"), "eps": -1}, "lr of group 'mine' is nan, .*; eps of group 'mine' is -1"),
        ({"betas": (0.9, 1.0)}, r"betas of group 'mine' are \(0.9, 1.0\), expected two numbers in \[0, 1\)"),
        ({"amsgrad": True}, "asks for amsgrad, which adamw does not have"),
        ({"weight_deacy": 0.1}, "has the key 'weight_deacy', which nobody reads .did you mean 'weight_decay'"),
    ],
)
def test_groups_that_cannot_work_are_one_line(options: dict[str, Any], message: str) -> None:
    parameters = list(nn.Linear(3, 3).parameters())
    with pytest.raises(ConfigError, match=message):
        SmetAdamW([{"params": parameters, "name": "mine", **options}])
    optimizer = SmetAdamW(parameters[:1])
    with pytest.raises(ConfigError, match=message):
        optimizer.add_param_group({"params": parameters[1:], "name": "mine", **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": parameters[1:], "foreach": None, "amsgrad": False, "max_lr": 1.0, "moe": True})


def trained(model: nn.Module) -> SmetAdamW:
    optimizer = SmetAdamW(parameter_groups(model, CONFIG))
    model(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_a_model_converted_after_its_first_step_is_one_line_and_before_it_trains() -> None:
    model = sparse_model()
    optimizer = trained(model)
    model.bfloat16()
    model(torch.randn(4, 32, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(ConfigError, match="is torch.bfloat16 .* now and was torch.float32 .* before you make its opt"):
        optimizer.step()
    early = sparse_model()
    optimizer = SmetAdamW(parameter_groups(early, CONFIG))
    early.bfloat16()
    early(torch.randn(4, 32, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_a_state_of_another_density_is_one_line_and_changes_nothing() -> None:
    state = trained(sparse_model()).state_dict()
    denser = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    sparsify(denser, SmetConfig(density=0.5))
    optimizer = SmetAdamW(parameter_groups(denser, CONFIG))
    with pytest.raises(ConfigError, match="'exp_avg' of shape .256,. for parameter 2, which has .512,."):
        optimizer.load_state_dict(state)
    assert optimizer.steps_done == 0 and not optimizer.state


def test_sparse_gradients_are_one_line() -> None:
    table = nn.Embedding(8, 4, sparse=True)
    optimizer = SmetAdamW(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ConfigError, match=r"has the layout torch.sparse_coo, .* embeddings with sparse=False"):
        optimizer.step()


def test_weights_in_another_memory_order_train_as_those_in_the_usual_one() -> None:
    torch.manual_seed(0)
    usual = nn.Conv2d(4, 8, 3)
    other = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    other.load_state_dict(usual.state_dict())
    assert not other.weight.is_contiguous()
    x = torch.randn(2, 4, 8, 8)
    optimizers = [SmetAdamW(model.parameters(), lr=1e-2, weight_decay=0.1) for model in (usual, other)]
    for _ in range(3):
        for model, optimizer in zip((usual, other), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(usual.weight, other.weight.contiguous(), rtol=1e-5, atol=1e-6)
    again = SmetAdamW(other.parameters())
    again.load_state_dict(optimizers[1].state_dict())
    assert torch.equal(again.state[other.weight]["exp_avg"], optimizers[1].state[other.weight]["exp_avg"])


def test_closures_and_schedulers_that_change_rates_and_betas_equal_torch() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(8, 8), nn.Linear(8, 8)]
    models[1].load_state_dict(models[0].state_dict())
    makers = (SmetAdamW, torch.optim.AdamW)
    optimizers = [make(m.parameters(), lr=1e-2, weight_decay=0.0) for make, m in zip(makers, models, strict=True)]
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20) for o in optimizers]
    x = torch.randn(16, 8)
    for _ in range(15):
        losses = []
        for model, optimizer, scheduler in zip(models, optimizers, schedulers, strict=True):

            def closure(model: nn.Module = model, optimizer: Any = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = (model(x) - x).square().mean()
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
            scheduler.step()
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-4, atol=1e-6)


class Wrapped(torch.Tensor):
    """A tensor that stands for another and has no memory of its own, as DTensor does."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


BITS, GRID = torch.tensor([0b10101010], dtype=torch.uint8), TileGrid(2, 4)
FOUR = {"weight": 4, "grad": 4, "exp_avg": 4, "exp_avg_sq": 4, "birth": 4, "step_size": 256, "correction": 256}


def adamw(**changes: torch.Tensor) -> None:
    vectors = {name: torch.zeros(size) for name, size in FOUR.items()}
    vectors["birth"] = vectors["birth"].byte()
    kernels.adamw(kernels.AdamStep(**{**vectors, **changes}, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0))


NO_LISTS = tiles.Lists(*[torch.zeros(0, dtype=torch.int32)] * 3)


def wrapped(size: int, dtype: torch.dtype = torch.float32) -> Any:
    return Wrapped(torch.zeros(size, dtype=dtype))


@pytest.mark.parametrize(
    "call",
    [
        lambda: kernels.expand(BITS, wrapped(4), GRID),
        lambda: kernels.expand(wrapped(1, torch.uint8), torch.zeros(4), GRID),
        lambda: kernels.compress(wrapped(8), BITS, GRID, 4),
        lambda: kernels.compress(torch.zeros(2, 4), wrapped(1, torch.uint8), GRID, 4),
        lambda: tiles.spread(wrapped(4), torch.zeros(4), NO_LISTS, 4, 2, 2, True),
        lambda: tiles.spread(torch.zeros(4), wrapped(4), NO_LISTS, 4, 2, 2, True),
        lambda: tiles.sample(wrapped(4), torch.zeros(4), NO_LISTS, {}, 2, 2),
        lambda: tiles.sample(torch.zeros(4), wrapped(4), NO_LISTS, {}, 2, 2),
        *[lambda name=name: adamw(**{name: wrapped(FOUR[name])}) for name in FOUR],
    ],
)
def test_every_kernel_refuses_every_argument_that_has_no_memory_of_its_own(call: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="is a Wrapped, expected a plain tensor"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tiles.spread(torch.zeros(3, 32), torch.zeros(16 * 16), NO_LISTS, 32, 16, 16, True),
        lambda: tiles.spread(torch.zeros(3, 32), torch.zeros(0), NO_LISTS, 40, 16, 16, True),
        lambda: tiles.spread(torch.zeros(96), torch.zeros(0), NO_LISTS, 32, 16, 16, True),
        lambda: tiles.sample(torch.zeros(3, 32), torch.zeros(4, 32), NO_LISTS, {}, 16, 16),
        lambda: tiles.sample(torch.zeros(96), torch.zeros(96), NO_LISTS, {}, 16, 16),
    ],
)
def test_products_over_tiles_refuse_sizes_that_do_not_fit(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="do not fit 0 tiles|expected two matrices of as many rows"):
        call()


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("kind", ["size", "device", "dtype"])
def test_adamw_refuses_sizes_devices_and_types_that_do_not_fit(name: str, kind: str) -> None:
    wrong = {
        "size": torch.zeros(0 if FOUR[name] == 256 else 3, dtype=torch.uint8 if name == "birth" else torch.float32),
        "device": torch.zeros(FOUR[name], device="meta"),
        "dtype": torch.zeros(FOUR[name], dtype=torch.int32),
    }[kind]
    with pytest.raises((ConfigError, RuntimeError)):
        adamw(**{name: wrong})
    adamw()


def fully_sharded() -> list[str]:
    """What FSDP2's parameters meet in plain torch's store, and at a kernel."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = sparse_model()
    values = model[0].values
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    found = []
    for attempt in (
        lambda: controller(model, SmetAdamW(parameter_groups(model, CONFIG), lr=1e-3)),
        lambda: controller(model, SmetAdamW([{"params": [values], "aged": True}])),
        lambda: kernels.expand(model[0].mask, model[0].values, model[0].grid),
    ):
        try:
            attempt()
            found.append("")
        except ConfigError as error:
            found.append(str(error))
    return found


def test_what_fully_shard_cut_is_refused_in_one_line_where_it_does_not_belong() -> None:
    for store, stale, kernel in run_ranks(fully_sharded, 2):
        assert "a parameter is a DTensor, expected a plain tensor; what fully_shard (FSDP2) cut is whole insi" in store
        assert "is not in the optimizer; make the optimizer over" in stale
        assert kernel.startswith("values is a DTensor")


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no mapping": lambda own: 3,
    "empty": lambda own: {},
    "a clock of text": lambda own: {**own, "steps_done": "12"},
    "a negative clock": lambda own: {**own, "steps_done": -1},
    "too few births": lambda own: {**own, "births": own["births"][:9]},
    "a birth in the future": lambda own: {**own, "births": [0, 10**9, *own["births"][2:]]},
    "spans of two": lambda own: {**own, "spans": [[1, 2]]},
    "a topology of other entries": lambda own: {**own, "topology": {"foo": 1}},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_state_is_one_line_and_changes_nothing(damage: str) -> None:
    model = sparse_model()
    optimizer = SmetAdamW(parameter_groups(model, CONFIG))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = 0.5
    for broken in ({**state, "smet": DAMAGED[damage](state["smet"])}, {"smet": state["smet"]}):
        with pytest.raises(ConfigError, match="the optimizer state is damaged or incomplete: expected"):
            optimizer.load_state_dict(broken)
    assert optimizer.steps_done == 1 and all(group["lr"] == 1e-3 for group in optimizer.param_groups)
    optimizer.load_state_dict(state)
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)
