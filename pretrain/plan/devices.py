"""GPUs by name: what their makers say they reach. For MFU, and for plans of machines that nobody has at hand.

Figures are those of the makers' data sheets, products without structured sparsity and with sums in fp32; nothing here
was measured. A name that no entry knows has no figures: an assumed peak would make a wrong MFU look like a right one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of GPU."""

    flops: float
    """Dense bf16 floating-point operations per second, sums in fp32."""
    memory: int
    """Bytes."""
    memory_bandwidth: float
    """Bytes per second."""
    node_bandwidth: float
    """Bytes per second that one GPU sends to others of its machine, in one direction, over all its links."""
    reported: str
    """Regular expression of the whole name that the driver reports, which torch passes on."""
    source: str
    """The data sheet."""


GB, TB, TFLOPS = 10**9, 1e12, 1e12
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

DEVICES: dict[str, Device] = {
    "A100-40GB": Device(
        flops=312 * TFLOPS, memory=40 * GB, memory_bandwidth=1.555 * TB, node_bandwidth=300e9,
        reported="NVIDIA A100-SXM4-40GB|A100-SXM4-40GB", source=_NVIDIA + "a100/",
    ),
    "A100": Device(
        flops=312 * TFLOPS, memory=80 * GB, memory_bandwidth=2.039 * TB, node_bandwidth=300e9,
        reported="NVIDIA A100-SXM4-80GB|A100-SXM4-80GB|NVIDIA A100-SXM-80GB", source=_NVIDIA + "a100/",
    ),
    "A100-PCIe": Device(
        flops=312 * TFLOPS, memory=80 * GB, memory_bandwidth=1.935 * TB, node_bandwidth=32e9,
        reported="NVIDIA A100 80GB PCIe", source=_NVIDIA + "a100/",
    ),
    "H100": Device(
        flops=989.4 * TFLOPS, memory=80 * GB, memory_bandwidth=3.35 * TB, node_bandwidth=450e9,
        reported="NVIDIA H100 80GB HBM3", source=_NVIDIA + "h100/",
    ),
    "H100-PCIe": Device(
        flops=756 * TFLOPS, memory=80 * GB, memory_bandwidth=2.0 * TB, node_bandwidth=64e9,
        reported="NVIDIA H100 PCIe", source=_NVIDIA + "h100/",
    ),
    "H200": Device(
        flops=989.4 * TFLOPS, memory=141 * GB, memory_bandwidth=4.8 * TB, node_bandwidth=450e9,
        reported="NVIDIA H200", source=_NVIDIA + "h200/",
    ),
    "B200": Device(
        flops=2250 * TFLOPS, memory=180 * GB, memory_bandwidth=8.0 * TB, node_bandwidth=900e9,
        reported="NVIDIA B200", source=_NVIDIA + "hgx/",
    ),
    "MI300X": Device(
        flops=1307.4 * TFLOPS, memory=192 * GB, memory_bandwidth=5.3 * TB, node_bandwidth=448e9,
        reported="AMD Instinct MI300X( OAM| VF)?",
        source="https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
    ),
    "RTX-4090": Device(
        flops=165.2 * TFLOPS, memory=24 * GB, memory_bandwidth=1.008 * TB, node_bandwidth=32e9,
        reported="NVIDIA GeForce RTX 4090",
        source="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "L40S": Device(
        flops=362.05 * TFLOPS, memory=48 * GB, memory_bandwidth=0.864 * TB, node_bandwidth=32e9,
        reported="NVIDIA L40S", source=_NVIDIA + "l40s/",
    ),
}  # fmt: skip
"""By the name that people use, which ``smet plan`` takes."""


def device_of(reported: str) -> tuple[str, Device] | None:
    """The name and figures of the GPU that torch calls ``reported``; None for one that the table lacks.

    Slices of a GPU (MIG), laptop and cut-down models have names that go on, and are not taken for the whole one.
    """
    for name, device in DEVICES.items():
        if re.fullmatch(device.reported, reported.strip()):
            return name, device
    return None
