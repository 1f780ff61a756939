"""torch's ``fully_shard`` (FSDP2) on two ranks: one model, as one process trains it; checkpoints, bytes, refusals."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

import smet
from smet import ConfigError
from smet.fsdp import FsdpStore
from tests.distributed import run_ranks
from tests.smet.fsdp_runs import (
    KINDS,
    LONG,
    SHORT,
    WHOLE,
    Length,
    Loop,
    accumulated,
    by_dense_adamw,
    by_three,
    by_two,
    bytes_at_rest,
    exchanged,
    one_rank_differs,
    plain,
    precise,
    refusal,
    resumed,
    shard,
    straight,
)
from tests.smet.zero_runs import Case, Tiny

FAST = [("smet", SHORT), ("smet-rigl", SHORT)]
SLOW = [("smet", LONG), ("smet-rigl", LONG), ("momentum, masks whole", SHORT), ("falling", SHORT)]
RUNS = [*FAST, *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW)]
EXCHANGED = [("smet-rigl", SHORT), pytest.param("momentum, masks whole", SHORT, marks=pytest.mark.slow)]
HALVES: dict[str, dict[str, Any]] = {
    "a policy": {"policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
    "bf16 weights": {"half": True},
    "lion": {"formula": "lion"},
    "8-bit moments": {"formula": "adamw_8bit"},
}


def session(folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {run: trained(*run, folder) for run in FAST}
    found["dense"], found["one differs"] = by_dense_adamw(), one_rank_differs()
    found["bytes"] = {half: bytes_at_rest(half) for half in (False, True)}
    found["refused"], found["from rank 0"] = refused(), from_rank_0()
    return found


def slow_session(folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {run: trained(*run, folder) for run in SLOW}
    rigl = KINDS["smet-rigl"]
    found["accumulated"] = [accumulated(rigl, sync, skip) for sync in (True, False) for skip in (False, True)]
    found["accumulated alone"] = [accumulated(rigl, True, skip, cut=False)["digests"] for skip in (False, True)]
    others: list[dict[str, Any]] = [{}, {"checkpointing": True}, {"keep": True}]
    found["same"] = [Loop(rigl, **options).train(0, 10) for options in others]
    found["same"].append(Loop({**rigl, "weight_residency": "dense"}).train(0, 10))
    found["precise"] = {name: precise(**options) for name, options in HALVES.items()}
    return found


def trained(kind: str, length: Length, folder: str) -> dict[str, Any]:
    settings, place = KINDS[kind], Path(folder) / kind
    found = {"straight": straight(settings, length), "resumed": resumed(settings, length, place)}
    both = kind in ("smet-rigl", "momentum, masks whole") and length == SHORT
    return {**found, "exchanged": exchanged(settings, length, place)} if both else found


@functools.cache
def results(of: Callable[[str], dict[Any, Any]]) -> list[dict[Any, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(of, 2, folder, timeout=400)


def of_run(kind: str, length: Length) -> list[dict[str, Any]]:
    """By rank."""
    of = session if (kind, length) in FAST else slow_session
    return [rank[kind, length] for rank in results(of)]


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    assert ours.keys() == theirs.keys() and ours
    return [key for key in ours if not torch.equal(ours[key], theirs[key])]


@pytest.mark.parametrize("kind, length", RUNS)
def test_all_ranks_have_one_model_which_is_what_one_process_trains(kind: str, length: Length) -> None:
    first, second = (rank["straight"] for rank in of_run(kind, length))
    assert first["digests"] == second["digests"] and len(first["digests"]) == length.steps // length.interval
    for rank in (first, second):
        masks, alone = rank["masks"]
        assert masks == alone and len(masks) == 2 and masks[0] != masks[1]
        assert torch.allclose(*(torch.tensor(one) for one in rank["losses"]), rtol=0, atol=2e-5)
        for part in ("model", "state"):
            assert rank["early"][part].keys() == rank["alone"][part].keys()
        for name, value in rank["alone"]["model"].items():
            torch.testing.assert_close(rank["early"]["model"][name], value, rtol=2e-3, atol=2e-5)
        for name, state in rank["alone"]["state"].items():
            ours = rank["early"]["state"][name]
            assert ours.keys() == state.keys()
            assert "birth" not in state or torch.equal(ours["birth"], state["birth"])
            torch.testing.assert_close(ours["exp_avg"], state["exp_avg"], rtol=2e-3, atol=2e-6)
    assert differing(first["early"]["model"], second["early"]["model"]) == []


@pytest.mark.parametrize("kind, length", RUNS)
def test_half_a_run_and_its_resumption_are_the_run_bit_for_bit(kind: str, length: Length) -> None:
    for rank in of_run(kind, length):
        whole, again = rank["straight"], rank["resumed"]
        assert differing(whole["parts"], again["parts"]) == []
        assert [whole[key] for key in ("clock", "digests", "all losses")] == [
            again[key] for key in ("clock", "digests", "all losses")
        ]
        assert whole["clock"]["steps"] == length.steps
        assert whole["clock"]["position"]["updates_done"] == length.steps // length.interval


@pytest.mark.parametrize("kind, length", EXCHANGED)
def test_states_go_to_one_process_and_back(kind: str, length: Length) -> None:
    for rank in of_run(kind, length):
        found = rank["exchanged"]
        cut, alone, plain = found["losses"]
        assert cut == pytest.approx(alone, abs=1e-6) and alone == plain
        for other in ("alone", "by files"):
            assert differing(found["trained"]["model"], found[other]["model"]) == []
            for name, state in found["trained"]["state"].items():
                assert differing(state, found[other]["state"][name]) == []
            ours, theirs = found["trained"]["smet"], found[other]["smet"]
            assert ours["births"] == theirs["births"] and ours["steps_done"] == theirs["steps_done"] == length.half
            means = ours["topology"]["moments"]
            assert (kind == "momentum, masks whole") == bool(means)
            assert not means or differing(means, theirs["topology"]["moments"]) == []
        before, back, later, later_back = found["there and back"]
        assert differing(before, back) == [] and differing(later, later_back) == []
        assert differing(before, later) != []


@pytest.mark.slow
def test_other_numbers_of_ranks_and_distributed_data_parallel_go_on_with_what_is_saved(tmp_path: Path) -> None:
    two, three = run_ranks(by_two, 2, tmp_path), run_ranks(by_three, 3, tmp_path)
    saved = two[0]["saved"]
    pairs = [(saved, rank["loaded"]) for rank in three] + [(saved, rank["replicas"]) for rank in two]
    for ours, theirs in [*pairs, *((rank["later"], rank["back"]) for rank in two)]:
        assert differing(ours["model"], theirs["model"]) == []
        for name, state in ours["state"].items():
            assert differing(state, theirs["state"][name]) == []
        assert differing(ours["smet"]["topology"]["moments"], theirs["smet"]["topology"]["moments"]) == []
    assert differing(saved["model"], two[0]["later"]["model"]) != []
    for rank in three:
        assert rank["digests"] == three[0]["digests"] and len(rank["digests"]) == 2
        assert differing(rank["whole"]["model"], three[0]["whole"]["model"]) == []
    lengths = [rank["lengths"]["layers.0.up_proj.values"] for rank in three]
    assert lengths[0] == lengths[1] > lengths[2] > 0, "cut where tiles and ranks do not fit"


@pytest.mark.slow
def test_gradients_of_micro_batches_that_torch_has_not_summed_count() -> None:
    """Growth by gradients sees both micro-batches of a step, and none of a step that was left out."""
    for rank in results(slow_session):
        together, together_skipped, late, late_skipped = rank["accumulated"]
        for early, after in ((together, late), (together_skipped, late_skipped)):
            assert torch.equal(early["digests"], after["digests"])
            for name, value in early.items():
                torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
        assert len(together["digests"]) == 3 and len(together_skipped["digests"]) == 2
        for ours, alone in zip((together, together_skipped), rank["accumulated alone"], strict=True):
            assert torch.equal(ours["digests"], alone)


def test_ranks_decide_alike_where_one_of_them_sees_something_else() -> None:
    """A step that overflows on one rank is left out on all; gradients that one of them has are there for all."""
    first, second = (rank["one differs"] for rank in results(session))
    assert first == second
    assert first["clock"] == [1, 2, 3, 3, 4, 5] and len(first["digests"]) == 1
    assert first["said"] == [True, False]


@pytest.mark.slow
def test_neither_checkpointing_nor_what_is_kept_gathered_changes_anything() -> None:
    """Also where nobody gives back what was gathered for a step: its successor sees new weights."""
    for rank in results(slow_session):
        plain, *others = rank["same"]
        assert all(losses == plain for losses in others)


def test_density_1_is_dense_adamw() -> None:
    for rank in results(session):
        ours, dense = rank["dense"]
        assert ours == pytest.approx(dense, abs=1e-6)


@pytest.mark.parametrize("half", [False, True])
def test_bytes_at_rest_are_what_is_planned(half: bool) -> None:
    for rank in results(session):
        found = rank["bytes"][half]
        for part in ("sparse", "dense"):
            held, planned = found["held"][part], found["planned"][part]
            for kind, size in planned.items():
                assert abs(held[kind] - size) <= 0.02 * max(planned.values()), (part, kind)
            assert abs(sum(held.values()) / sum(planned.values()) - 1) <= 0.02
        assert half or sum(found["held"]["sparse"].values()) <= 0.28 * sum(found["dense"].values())
        assert found["held"]["sparse"]["master"] > 0 if half else found["held"]["sparse"]["master"] == 0


@pytest.mark.slow
def test_less_precision_and_another_formula() -> None:
    for name in HALVES:
        first, second = (rank["precise"][name] for rank in results(slow_session))
        assert first["digests"] == second["digests"] and len(first["digests"]) == 1
        assert first["masks"] == second["masks"]
        assert first["losses"][-1] < first["losses"][0]
        weights = "torch.bfloat16" if name == "bf16 weights" else "torch.float32"
        moments = "torch.uint8" if name == "8-bit moments" else "torch.float32"
        assert (first["dtypes"]["weights"], first["dtypes"]["moments"]) == (weights, moments)


def made(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Tiny()
    smet.sparsify(model, density=0.25, exclude=("embed", "*norm", "head"), quiet=True, **settings)
    return model


def from_rank_0() -> list[dict[str, Any]]:
    """A whole state that only the first rank has: as it is, in a model that is attached, and in one that is not."""
    first, attached = Loop(KINDS["smet"]), Loop(KINDS["smet"], seed=5)
    other = smet.sparsify(Tiny(), Case(0, settings=tuple(KINDS["smet"].items())).config(), quiet=True).model
    first.train(0, SHORT.interval + 1)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    model = get_model_state_dict(first.model, options=WHOLE)
    state = get_optimizer_state_dict(first.model, first.optimizer, options=WHOLE)
    shard(other)
    for into in (attached.model, other):
        set_model_state_dict(into, dict(model) if dist.get_rank() == 0 else {}, options=options)
    set_optimizer_state_dict(attached.model, attached.optimizer, state if dist.get_rank() == 0 else {}, options=options)
    return [plain(model), attached.whole()["model"], plain(get_model_state_dict(other, options=WHOLE)),
            plain(state["state"]), attached.whole()["state"]]  # fmt: skip


def refused() -> dict[str, str]:
    """Each on both ranks: nobody may wait for one that was refused alone."""
    world = dist.get_world_size()

    def early() -> None:
        model = made()
        optimizer = smet.AdamW(model)
        shard(model)
        smet.attach(optimizer, 10)

    def early_and_static() -> None:
        model = made(update_interval=0)
        optimizer = smet.AdamW(model)
        shard(model)
        optimizer.step()

    def unattached() -> None:
        model = made(update_interval=0)
        shard(model)
        smet.AdamW(model).step()

    def blocks_alone() -> None:
        model = made()
        for block in model.layers:  # type: ignore[union-attr]
            fully_shard(block, mesh=init_device_mesh("cpu", (world,)))
        smet.attach(smet.AdamW(model), 10)

    def hybrid() -> None:
        model = made()
        fully_shard(model, mesh=init_device_mesh("cpu", (1, world), mesh_dim_names=("replicas", "shards")))
        smet.AdamW(model)

    def spread() -> None:
        weight = distribute_tensor(torch.zeros(4, 4), init_device_mesh("cpu", (world,)), [Replicate()])
        smet.SmetAdamW([nn.Parameter(weight)])

    def other_masks() -> None:
        torch.manual_seed(dist.get_rank())
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        smet.sparsify(model, density=0.25, mask_init="magnitude", quiet=True)
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        smet.attach(smet.AdamW(model), 10)

    def other_lengths() -> None:
        model = made()
        shard(model)
        smet.attach(smet.AdamW(model), 10 + dist.get_rank())

    def replicas() -> None:
        model = made()
        shard(model)
        smet.attach(smet.AdamW(model), 10, replicas=None)

    def local() -> None:
        model = made()
        shard(model)
        layer = model.get_submodule("layers.0.up_proj")
        assert isinstance(layer, smet.SparseLinear)
        smet.LocalStore(smet.AdamW(model)).fragment(layer.values)

    def loaded_before() -> None:
        model = made()
        optimizer, names = smet.AdamW(model), {param: name for name, param in model.named_parameters()}
        optimizer.state_dict()  # makes it, as loading does
        optimizer.steps_done = 3
        shard(model)
        for group in optimizer.param_groups:  # as accelerate does
            group["params"] = [model.get_parameter(names[param]) for param in group["params"]]
        smet.attach(optimizer, 10)

    def on_one_rank() -> None:
        model = made()
        shard(model)
        whole = model.state_dict()
        model.load_state_dict(whole if dist.get_rank() == 0 else {}, strict=False)

    loop = Loop({})
    loop.train(0, 1)
    state = loop.optimizer.state_dict()

    def into_a_plain_one() -> None:
        Loop({}, cut=False).optimizer.load_state_dict(state)

    attempts = {
        "early": early, "early and static": early_and_static, "unattached": unattached, "blocks alone": blocks_alone,
        "hybrid": hybrid, "spread": spread, "other masks": other_masks, "other lengths": other_lengths,
        "replicas": replicas, "local": local, "loaded before": loaded_before, "into a plain one": into_a_plain_one,
        "on one rank": on_one_rank,
        "weight": lambda: loop.model.get_submodule("layers.0.up_proj").weight,
        "average": lambda: smet.ModelAverage(loop.model),
    }  # fmt: skip
    found = {name: refusal(attempt) for name, attempt in attempts.items()}
    assert isinstance(loop.run.topology.store, FsdpStore)
    return found


SAID = {
    "early": "where fully_shard cuts the model, make the optimizer after it",
    "early and static": "the optimizer was made before fully_shard",
    "unattached": "fully_shard cut the parameters; call smet.attach(optimizer, total_steps) before the first step",
    "blocks alone": "embed.weight is not cut, so that nobody averages its gradient over ranks",
    "hybrid": "is a DTensor over a mesh of 2 dimensions (hybrid sharding",
    "spread": "is a DTensor with the placement",
    "other masks": "masks differ between the ranks over which fully_shard cut the model; make it alike on all of them",
    "other lengths": "total_steps differ between the ranks",
    "replicas": "replicas is given with a model that fully_shard cut",
    "local": "is a DTensor, expected a plain tensor; what fully_shard (FSDP2) cut is whole inside",
    "loaded before": "state was loaded before fully_shard cut its parameters; load it after attach",
    "into a plain one": "as a DTensor, and the parameter is a Tensor: load it by set_optimizer_state_dict",
    "on one rank": "some ranks have a state of layers.0.up_proj, and others none; load one on every rank",
    "weight": "was read while fully_shard has its",
    "average": "are partitioned; gather them first",
}


@pytest.mark.parametrize("what", SAID)
def test_what_cannot_work_is_refused_in_one_line(what: str) -> None:
    for rank in results(session):
        assert SAID[what] in rank["refused"][what] and "\n" not in rank["refused"][what]


def test_a_whole_state_of_one_rank_is_sent_to_all() -> None:
    for rank in results(session):
        whole, attached, other, state, loaded = rank["from rank 0"]
        assert differing(whole, attached) == [] and differing(whole, other) == []
        assert state.keys() == loaded.keys()
        for name, entries in state.items():
            assert differing(entries, loaded[name]) == []


def test_a_model_that_nobody_cut_is_none_of_the_stores() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    smet.sparsify(model, density=0.25, quiet=True)
    with pytest.raises(ConfigError, match="0.values is not cut, so that nobody averages its gradient"):
        FsdpStore(smet.AdamW(model), model)
