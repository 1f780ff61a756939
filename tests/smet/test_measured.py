"""Who multiplies is measured once for each shape; all ranks take what the first one found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import smet
from smet import compute, measured
from smet.compute.dense import Dense
from smet.errors import ConfigError
from smet.linear import SparseLinear, sparse_layers
from tests.distributed import run_ranks


class Other(Dense):
    """Serves layers of fewer than 64 outputs."""

    name = "other"

    def serves(self, layer: SparseLinear, x: Any, forced: bool = False) -> bool:
        return forced and layer.out_features < 64


TWO = {"other": Other(), "dense": "smet.compute.dense:Dense"}


@pytest.fixture(autouse=True)
def two_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compute, "TABLE", TWO)
    monkeypatch.setattr(measured, "TABLE", TWO)
    monkeypatch.delenv("SMET_COMPUTE", raising=False)
    yield


def model_of(**settings: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 64))
    return smet.sparsify(model, density=0.5, block=(4, 4), update_interval=0, quiet=True, **settings).model


def times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[str]:
    """Fixes what each backend takes; the shapes that are measured are added to the list."""
    asked: list[str] = []

    def taken(case: measured.Case, names: list[str]) -> dict[str, float]:
        asked.append(str(case))
        return {name: seconds[name] for name in names}

    monkeypatch.setattr(measured, "_times", taken)
    return asked


def decide(model: nn.Module, tokens: int = 8, **more: Any) -> measured.Choices:
    layers = sparse_layers(model).values()
    return measured.measure(layers, tokens, torch.float32, lambda value: [value], True, **more)


@pytest.mark.parametrize("fast", ["other", "dense"])
def test_the_faster_one_multiplies_what_it_was_measured_for(monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    asked, model = times(monkeypatch, **{"other": 2.0, "dense": 2.0, fast: 1.0}), model_of()
    found = decide(model)
    assert asked == list(found.chosen) and len(asked) == 2, "a shape is measured once, one that only dense serves never"
    assert asked[0] == "16 x 24 in tiles of 4 x 4 at 0.5, 8 tokens of float32 on cpu"
    (line,) = found.describe()
    assert line == (
        f"products measured in 2 shapes, fastest by {fast} (2); by other they take "
        f"{'0.50' if fast == 'other' else '2.00'} of the dense time"
    )
    layer, last = model[0], model[3]
    assert compute.choose(layer, torch.zeros(2, 4, 24)).name == fast
    assert compute.choose(layer, torch.zeros(9, 24)).name == "dense", "other numbers of tokens go by the table"
    assert compute.choose(layer, torch.zeros(8, 24, dtype=torch.float64)).name == "dense"
    assert compute.choose(last, torch.zeros(8, 16)).name == "dense"


def test_what_is_told_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch, other=1.0, dense=2.0)
    assert not decide(model_of(compute="dense")).chosen and not asked
    monkeypatch.setenv("SMET_COMPUTE", "dense")
    assert not decide(model_of()).chosen and not asked


def test_earlier_choices_hold_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch, other=1.0, dense=2.0)
    first = decide(model_of())
    asked.clear()
    before = {case: "dense" for case in first.chosen}
    again = decide(model_of(), known=lambda machine: before if machine == first.machine else {})
    assert again.chosen == before and not asked and not again.describe() and again.changes(first.chosen) == 2
    gone = decide(model_of(), known=lambda machine: dict.fromkeys(before, "nobody"))
    assert gone.chosen == first.chosen and len(asked) == 2


def test_what_cannot_be_measured_goes_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: measured.Case, names: list[str]) -> dict[str, float]:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(measured, "_times", broken)
    model = model_of()
    found = decide(model)
    assert not found.chosen and "the table decides: 16 x 24" in found.describe()[0]
    assert found.describe()[0].endswith("(out of memory)") and model[0].decided is None


def test_real_times_are_taken_without_touching_random_numbers() -> None:
    model, before = model_of(weight_residency="dense"), torch.get_rng_state()
    found = decide(model)
    assert torch.equal(before, torch.get_rng_state())
    assert {name for name in found.chosen.values()} <= {"other", "dense"} and len(found.seconds) == 2
    assert all(taken > 0 for times in found.seconds.values() for taken in times.values())
    assert all(case.endswith("dense residency") for case in found.chosen)


def ranks_that_differ(how: str) -> tuple[list[str], str, str]:
    """Rank 0 finds the other backend faster, rank 1 dense; or rank 1 lacks it, or has other layers."""
    rank = int(os.environ["RANK"])
    compute.TABLE = measured.TABLE = TWO
    if how == "lacks it" and rank == 1:
        Other.serves = lambda *_, **__: False  # type: ignore[method-assign]
    measured._times = lambda case, names: {"other": 1.0 + 2 * rank, "dense": 2.0}
    model = model_of() if how != "other layers" or rank == 0 else smet.sparsify(
        nn.Sequential(nn.Linear(24, 32)), density=0.5, block=(4, 4), update_interval=0, quiet=True
    ).model  # fmt: skip
    optimizer = smet.AdamW(model)
    if how == "other layers":
        import torch.distributed as dist

        def gather(value: Any) -> list[Any]:
            gathered: list[Any] = [None, None]
            dist.all_gather_object(gathered, value)
            return gathered

        measured.measure(sparse_layers(model).values(), 8, torch.float32, gather, rank == 0)
    else:
        try:
            smet.attach(optimizer, 4, tokens=8 if how != "other tokens" or rank == 0 else None)
        except ConfigError as error:
            return [], "", str(error)
    names = [compute.choose(la, torch.zeros(8, la.in_features)).name for la in sparse_layers(model).values()]
    return names, str(model[0].decided and model[0].decided.name), ""


@pytest.mark.parametrize(
    ("how", "names", "told"),
    [
        ("other times", [["other", "other", "other", "dense"]] * 2, ""),
        ("lacks it", [["dense"] * 4] * 2, ""),
        ("other layers", [["other", "other", "other", "dense"], ["other"]], ""),
        ("other tokens", [[], []], "tokens of attach differ between ranks"),
    ],
)
def test_all_ranks_take_the_choice_of_the_first(how: str, names: list[list[str]], told: str) -> None:
    found = run_ranks(ranks_that_differ, 2, how)
    assert [one[0] for one in found] == names
    assert all(one[2].startswith(told) and bool(one[2]) == bool(told) for one in found)


def test_attach_measures_only_where_it_is_told_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch, other=1.0, dense=2.0)
    model = model_of()
    smet.attach(smet.AdamW(model), 4)
    assert not asked and model[0].decided is None
    model = model_of()
    smet.attach(smet.AdamW(model), 4, tokens=8)
    assert len(asked) == 2 and model[0].decided == compute.Decided("other", 8, torch.float32)
    with pytest.raises(ConfigError, match="tokens is 0, expected the rows"):
        smet.attach(smet.AdamW(model_of()), 4, tokens=0)
