"""GPUs are known by the names that drivers report, and only whole ones."""

from __future__ import annotations

import re

import pytest

from pretrain.plan.devices import DEVICES, device_of


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_driver_s_name_is_found(reported: str, name: str) -> None:
    assert device_of(reported) == (name, DEVICES[name])


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40",
        "NVIDIA H200 NVL",
        "cpu",
        "",
    ],
)
def test_a_part_of_a_gpu_or_another_one_has_no_figures(reported: str) -> None:
    assert device_of(reported) is None


def test_figures_are_of_one_size() -> None:
    for name, device in DEVICES.items():
        assert re.compile(device.reported) and device.source.startswith("https://"), name
        assert 1e14 < device.flops < 1e16, f"{name}: FLOP/s"
        assert 2e10 < device.memory < 1e12 and 5e11 < device.memory_bandwidth < 2e13, name
        assert 1e10 < device.node_bandwidth < 1e12, f"{name}: in one direction"
        # A product of 4096 x 4096 is bound by its operations on each of them: a figure in other units is not.
        assert 50 < device.flops / device.memory_bandwidth < 500, name
