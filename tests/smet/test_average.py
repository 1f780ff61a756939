"""Averages of sparse models: right through topology updates where they are kept by place, refused where by index."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from smet import (
    ConfigError,
    LocalStore,
    MaskBank,
    ModelAverage,
    SmetAdamW,
    SmetConfig,
    TopologyController,
    densify,
    parameter_groups,
    sparse_layers,
    sparsify,
)
from smet.convert import Piece
from smet.loading import says_shape


class Run:
    """Two sparse layers, the second with a transposed canonical matrix, a norm with buffers, and updates every 5."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.Linear(32, 32)).to(
            dtype
        )
        settings = {"density": 0.25, "update_interval": 5, "stop_fraction": 1.0, "warmup_steps": 0, **settings}
        self.config = SmetConfig(exclude=("3",), seed=seed, **settings)
        sparsify(self.model, self.config, piece=Piece(transposed=("2",)))
        self.dtype = dtype
        self.take(self.model)

    def take(self, model: nn.Module) -> Run:
        """Train ``model`` from now on."""
        self.model = model
        self.optimizer = SmetAdamW(parameter_groups(model, self.config), lr=1e-2)
        store = LocalStore(self.optimizer)
        self.topology = TopologyController(model, self.config, store, MaskBank(model), total_steps=40)
        return self

    def steps(self, count: int) -> Iterator[int]:
        for step in range(count):
            x = torch.randn(8, 32, dtype=self.dtype)
            self.topology.before_step()
            (self.model(x) - x).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.topology.after_step()
            yield step

    def dense(self) -> list[Tensor]:
        return dense(self.model)


def dense(model: nn.Module) -> list[Tensor]:
    """All weights by place, in fp64, and the floating-point buffers."""
    weights = [layer.dense_weight().double() for layer in sparse_layers(model).values()]
    rest = [t for name, t in model.state_dict().items() if t.is_floating_point() and not name.endswith("values")]
    return weights + [t.double() for t in rest]


@pytest.mark.parametrize("decay", [None, 0.5, 0.9])
@pytest.mark.parametrize("settings", [{}, {"block": (2, 4), "prune_start": 0.2}, {"growth": "gradient"}], ids=str)
def test_an_average_through_updates_is_that_of_the_dense_weights(decay: float | None, settings: dict) -> None:
    run = Run(**settings)
    average, expected, count = ModelAverage(run.model, decay), run.dense(), 1
    for _ in run.steps(22):
        average.update(run.model)
        count += 1
        share = 1 / count if decay is None else 1 - decay
        for old, new in zip(expected, run.dense(), strict=True):
            old.lerp_(new, share)
    assert run.topology.updates_done == 4
    whole = average.model(run.model)
    for name in ("0", "2"):
        layer = whole.get_submodule(name)
        assert run.model.get_submodule(name).active < layer.active < layer.grid.tiles
        torch.testing.assert_close(densify(layer).weight, layer.dense_weight(), rtol=0, atol=0)
    assert whole[1].num_batches_tracked == 22
    for found, truth in zip(dense(whole), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad for p in whole.parameters())
    assert whole.eval()(torch.ones(1, 32)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_average_keeps_its_own_precision_and_the_model_its_dtype(dtype: torch.dtype) -> None:
    run = Run(dtype=dtype)
    average, total = ModelAverage(run.model), run.dense()
    for _ in run.steps(11):
        average.update(run.model)
        total = [a + b for a, b in zip(total, run.dense(), strict=True)]
    whole = average.model(run.model)
    assert {p.dtype for p in whole.parameters()} == {dtype}
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-13, "atol": 1e-15}
    torch.testing.assert_close(dense(whole)[0], total[0] / 12, **tolerance)


def test_a_soup_of_models_with_other_masks_is_the_mean_of_their_weights() -> None:
    runs = [Run(seed=seed) for seed in range(3)]
    soup = ModelAverage(runs[0].model)
    for run in runs[1:]:
        soup.update(run.model)
    expected = sum(run.dense()[0] for run in runs) / 3
    torch.testing.assert_close(dense(soup.model(runs[0].model))[0], expected, rtol=1e-5, atol=1e-8)


def test_a_saved_average_goes_on_bit_for_bit() -> None:
    run = Run()
    average = ModelAverage(run.model, 0.9)
    for _ in run.steps(7):
        average.update(run.model)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = ModelAverage(run.model, 0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in run.steps(6):
        average.update(run.model)
        resumed.update(run.model)
    for a, b in zip(dense(average.model(run.model)), dense(resumed.model(run.model)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="of a model with other layers"):
        resumed.load_state_dict({**average.state_dict(), "layers": {}})


def test_memory_is_that_of_the_union_and_old_weights_leave_an_exponential_average() -> None:
    run = Run(update_interval=1, prune_schedule="constant", prune_start=0.3)
    average = ModelAverage(run.model, decay=0.3)
    of_layers = ("values", "mask", "transposed", "block")
    state = {name: tensor for name, tensor in run.model.state_dict().items() if not says_shape(tensor)}
    others = sum(4 * tensor.numel() for name, tensor in state.items() if name.split(".")[-1] not in of_layers)
    others += 4  # the norm counts in int64
    assert average.bytes_held == others + 2 * (256 * 5 + 2 * 1024 // 8)
    for _ in run.steps(40):
        average.update(run.model)
    union = sum(layer.active for layer in sparse_layers(average.model(run.model)).values())
    assert 512 < union < 2048, "40 updates have visited nearly every place"


def test_wrong_decays_and_models_are_one_line() -> None:
    run = Run()
    with pytest.raises(ConfigError, match="decay is 1.0, expected a number between 0 and 1"):
        ModelAverage(run.model, decay=1.0)
    with pytest.raises(ConfigError, match="not those that the average began with"):
        ModelAverage(run.model).update(nn.Sequential(nn.Linear(2, 2)))


def torch_average(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    averaged = AveragedModel(model)
    return averaged.module, lambda: averaged.update_parameters(model)


def torch_ema(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return averaged.module, lambda: averaged.update_parameters(model)


def own_loop(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    """As in many programs: parameters alone, through ``.data``, of a copy that is not to be trained."""
    ema = copy.deepcopy(model).requires_grad_(False)

    def update() -> None:
        for mine, theirs in zip(ema.parameters(), model.parameters(), strict=True):
            mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)

    return ema, update


BY_INDEX = [torch_average, torch_ema, own_loop]


@pytest.mark.parametrize("make", BY_INDEX)
def test_an_average_by_index_across_two_updates_stops_the_run(make: Callable[..., Any]) -> None:
    run = Run()
    _, update = make(run.model)
    update()
    with pytest.raises(ConfigError, match="averaged entry by entry .* average with smet.ModelAverage"):
        for _ in run.steps(11):
            update()
    assert run.optimizer.steps_done == 10


@pytest.mark.parametrize("use", [lambda m: m(torch.ones(2, 32)), lambda m: m.state_dict(), lambda m: densify(m[0])])
@pytest.mark.parametrize("make", BY_INDEX)
def test_an_average_by_index_across_one_update_cannot_be_used(
    make: Callable[..., Any], use: Callable[..., Any]
) -> None:
    run = Run()
    averaged, update = make(run.model)
    update()
    for _ in run.steps(4):
        update()
    use(averaged.eval())
    for _ in run.steps(3):
        update()
    with pytest.raises(ConfigError, match="averaged entry by entry"):
        use(averaged)


def test_an_average_that_begins_after_the_last_update_is_right() -> None:
    """torch's recipe for SWA: made at the start, updated from some step on."""
    run = Run(stop_fraction=0.26)
    averaged, expected, count = AveragedModel(run.model), [], 0
    for step in run.steps(24):
        if step < 12:
            continue
        averaged.update_parameters(run.model)
        count += 1
        new = run.dense()
        expected = new if not expected else [a + b for a, b in zip(expected, new, strict=True)]
    assert run.topology.updates_done == 2
    torch.testing.assert_close(dense(averaged.module)[0], expected[0] / count, rtol=1e-5, atol=1e-7)


def test_copies_that_are_trained_loaded_or_left_alone_are_models_like_any_other() -> None:
    run = Run()
    teacher, target = copy.deepcopy(run.model), copy.deepcopy(run.model)
    other = Run().take(copy.deepcopy(run.model))
    before = dense(teacher)
    for _ in zip(run.steps(22), other.steps(22), strict=True):
        target.load_state_dict(run.model.state_dict())
        target.eval()(torch.ones(1, 32))
    assert run.topology.updates_done == other.topology.updates_done == 4
    assert all(torch.equal(a, b) for a, b in zip(before, dense(teacher), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(dense(target), run.dense(), strict=True))


def test_a_copy_leaves_what_belongs_to_the_run_behind() -> None:
    run = Run(growth="gradient", update_interval=1, weight_residency="dense")
    run.topology.before_step()
    twin = copy.deepcopy(run.model)
    x = torch.randn(4, 32)
    twin(x).sum().backward()
    assert run.topology.gradients.bytes_held == 0
    run.model(x).sum().backward()
    assert run.topology.gradients.bytes_held == 2 * 4 * 1024


def other_shapes(*sizes: tuple[int, int], **settings: Any) -> nn.Module:
    model = nn.Sequential(*(nn.Linear(inputs, outputs) for outputs, inputs in sizes))
    sparsify(model, SmetConfig(density=0.25, **settings), quiet=True)
    return model


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (other_shapes((32, 64)), r"0 is \[32, 64, 1, 1\], expected \[64, 32, 1, 1\] \(and 1 more\)"),
        (other_shapes((64, 32), block=(1, 4)), r"0 is \[64, 32, 1, 4\], expected \[64, 32, 1, 1\]"),
        (other_shapes((64, 16)), r"0 is \[64, 16, 1, 1\], expected"),
        (other_shapes((64, 32), (8, 64)), r"1 is \[8, 64, 1, 1\], expected none \(and 1 more\)"),
    ],
    ids=["transposed", "other blocks", "smaller", "longer"],
)
def test_a_model_or_state_of_other_shapes_is_refused_and_changes_nothing(other: nn.Module, said: str) -> None:
    model = other_shapes((64, 32))
    average = ModelAverage(model)
    before = dense(average.model(model))
    for use in (average.update, average.model, lambda m: average.load_state_dict(ModelAverage(m).state_dict())):
        with pytest.raises(ConfigError, match="not those|other layers"):
            use(other)
    with pytest.raises(ConfigError, match=said):
        average.update(other)
    assert average.count == 1
    assert all(torch.equal(a, b) for a, b in zip(before, dense(average.model(model)), strict=True))


def test_full_layers_that_are_permuted_otherwise_are_other_layers() -> None:
    def full(seed: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16, bias=False))
        sparsify(model, density=1.0, block=(4, 4), permute="both", seed=seed, quiet=True)
        return model

    average, like, other = ModelAverage(first := full(1)), full(1), full(2)
    average.update(first)
    assert torch.allclose(average.model(like)[0].weight, first[0].weight)
    with pytest.raises(ConfigError, match="features permuted"):
        average.update(other)
    with pytest.raises(ConfigError, match="features permuted"):
        average.model(other)
    saved = ModelAverage(other)
    with pytest.raises(ConfigError, match="features permuted"):
        saved.update(other)
        saved.load_state_dict(average.state_dict())
