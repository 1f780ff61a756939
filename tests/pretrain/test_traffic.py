"""Every collective is counted once, by the stated convention, whoever calls it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pretrain.engine.traffic import TrafficCounter
from pretrain.layout import Layout
from pretrain.traffic import ring_bytes
from smet.activity import TOPOLOGY, during
from smet.exchange import all_gather_flat, reduce_scatter_flat
from tests.distributed import run_ranks


def test_ring_bytes() -> None:
    assert ring_bytes("all_reduce", 1000, 4) == 1500
    assert ring_bytes("all_gather", 1000, 4) == ring_bytes("reduce_scatter", 1000, 4) == 750
    assert ring_bytes("send", 1000, 4) == 1000


def layout_of(data: int, tensor: int, stages: int) -> Layout:
    """This rank's layout in a world whose one group goes along one degree."""
    rank, control = dist.get_rank(), dist.new_group()
    return Layout(dist.get_world_size(), rank, data, 0, torch.device("cpu"), None, control, tensor_size=tensor,
                  stages=stages)  # fmt: skip


def count_each() -> dict[str, int]:
    """What each operation on 100 fp32 numbers per rank adds up to, in a data-parallel world."""
    ranks, group = dist.get_world_size(), dist.new_group()
    x, whole = torch.ones(100), torch.ones(100 * ranks)
    counted = {}
    with TrafficCounter(layout_of(ranks, 1, 1)) as counter:
        actions = {
            "gradients all_reduce": lambda: dist.all_reduce(x.clone(), group=group),
            "gradients reduce_scatter": lambda: reduce_scatter_flat(x.clone(), whole, group=group),
            "weights gather": lambda: all_gather_flat(whole.clone(), x, group=group),
            "masks gather": lambda: all_gather_flat(whole.to(torch.uint8), x.to(torch.uint8), group=group),
            "control norm": lambda: dist.all_reduce(torch.ones(1), group=group),
            "control objects": lambda: dist.all_gather_object([None] * ranks, {"a": 1}, group=group),
            "gradients all_to_all": lambda: dist.all_to_all_single(
                torch.empty(40 * ranks), torch.ones(40 * ranks), [40] * ranks, [40] * ranks, group=group
            ),
        }
        for name, action in actions.items():
            action()
            taken = counter.take()
            counted[name] = taken.pop(name.split()[0])
            assert not any(taken.values()), (name, taken)
        with during(TOPOLOGY):
            dist.all_reduce(x.clone(), group=group)
        counted["topology"] = counter.take()["topology"]
    dist.all_reduce(x.clone(), group=group)
    assert not any(counter.take().values()), "it counts on after its end"
    return counted


def test_kinds_and_bytes_in_a_data_parallel_world() -> None:
    for counted in run_ranks(count_each, 2):
        assert counted["gradients all_reduce"] == counted["topology"] == 400
        assert counted["gradients reduce_scatter"] == counted["weights gather"] == 400
        assert counted["masks gather"] == 100
        assert counted["control norm"] == 4
        assert counted["control objects"] > 0
        assert counted["gradients all_to_all"] == 160


def count_axes() -> dict[str, dict[str, int]]:
    ranks = dist.get_world_size()
    group = dist.new_group()
    found = {}
    for axis, sizes in {"tensor": (1, ranks, 1), "pipeline": (1, 1, ranks)}.items():
        with TrafficCounter(layout_of(*sizes)) as counter:
            dist.all_reduce(torch.ones(100), group=group)
            if dist.get_rank() == 0:
                dist.send(torch.ones(50), 1)
            elif dist.get_rank() == 1:
                dist.recv(torch.ones(50), 0)
            found[axis] = counter.take()
    return found


def test_axes_tell_tensor_from_pipeline_traffic() -> None:
    first, second = run_ranks(count_axes, 2)
    assert first["tensor"]["tensor"] == first["pipeline"]["pipeline"] == 400 + 200
    assert second["tensor"]["tensor"] == second["pipeline"]["pipeline"] == 400
