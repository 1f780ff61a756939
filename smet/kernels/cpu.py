"""The kernels in C++ (``cpu.cpp``) for tensors on the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from smet.kernels import compiler, reference
from smet.kernels.step import AdamStep
from smet.mask import TileGrid

LEVELS = ("portable", "AVX-512", "AVX-512 VBMI2")
GRADIENTS = {torch.float32: 0, torch.bfloat16: 1}
"""Gradient types that ``adamw`` reads as they are, and how the C++ side calls them."""


class CpuKernels:
    """The compiled kernels; the functions are those of ``smet.kernels.reference``.

    They use as many threads as ``torch.get_num_threads()`` at most, and their results do not
    depend on that number.

    Args:
        folder: where builds are kept, default ``compiler.cache_folder()``.
        machine: compiler flags that choose the instructions.

    Raises:
        compiler.BuildError: they cannot be built or loaded here.
    """

    def __init__(self, folder: Path | None = None, machine: tuple[str, ...] = compiler.NATIVE):
        self._library = library = compiler.load(compiler.build(folder=folder, machine=machine))
        pointer, integer, count, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
        for move in (library.smet_expand, library.smet_compress):
            move.argtypes = [pointer, pointer, pointer, count, count, count, count, count, integer]
            move.restype = count
        library.smet_adamw.argtypes = [
            pointer, pointer, integer, pointer, pointer, pointer, pointer, pointer, integer,
            real, real, real, real, count, integer,
        ]  # fmt: skip
        library.smet_adamw.restype = None
        self.level = LEVELS[library.smet_level()]
        """The instructions that expand and compress use."""

    def expand(self, bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
        """See ``reference.expand``; ``values`` of any dtype."""
        values = values.contiguous()
        active, rest = divmod(values.numel(), grid.tile_size)
        if rest:
            raise RuntimeError(f"{values.numel()} values do not fill tiles of {grid.tile_size}")
        matrix = values.new_empty(grid.rows, grid.cols)
        self._move(self._library.smet_expand, bits, values, matrix, grid, active)
        return matrix

    def compress(self, matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
        """See ``reference.compress``; ``matrix`` of any dtype."""
        matrix = matrix.contiguous()
        if matrix.numel() != grid.rows * grid.cols:
            raise RuntimeError(f"{matrix.numel()} dense weights are not {grid.rows} x {grid.cols}")
        values = matrix.new_empty(active * grid.tile_size)
        self._move(self._library.smet_compress, bits, matrix, values, grid, active)
        return values

    @staticmethod
    def _move(
        function: ctypes._NamedFuncPointer, bits: Tensor, source: Tensor, target: Tensor, grid: TileGrid, active: int
    ) -> None:
        bits = bits.contiguous()
        if bits.dtype != torch.uint8 or not bits.is_cpu or bits.numel() < grid.mask_bytes:
            raise RuntimeError(
                f"a mask of {grid.tiles} tiles is {grid.mask_bytes} bytes of uint8 on the cpu, "
                f"got {bits.numel()} of {bits.dtype} on {bits.device}"
            )
        height, width = grid.tile
        found = function(
            bits.data_ptr(), source.data_ptr(), target.data_ptr(), grid.tiles, width * source.element_size(), height,
            grid.cols // width, active, torch.get_num_threads(),
        )  # fmt: skip
        if found != active:
            raise RuntimeError(f"mask holds {found} active tiles, the layer {active}")

    def adamw(self, step: AdamStep) -> None:
        """See ``reference.adamw``, which also takes what is not fp32 (gradients: fp32 or bf16) or not contiguous."""
        factors = (step.step_size, step.correction)
        if (
            any(t.dtype != torch.float32 for t in (*step.changed, *factors))
            or step.grad.dtype not in GRADIENTS
            or not all(t.is_contiguous() for t in (*step.vectors, *factors))
        ):
            reference.adamw(step)
            return
        count, sizes = step.weight.numel(), [t.numel() for t in step.vectors]
        if any(size != count for size in sizes) or not all(t.is_cpu for t in step.vectors):
            raise RuntimeError(f"expected vectors of {count} on the cpu, got {sizes}")
        self._library.smet_adamw(
            step.weight.data_ptr(), step.grad.data_ptr(), GRADIENTS[step.grad.dtype], step.exp_avg.data_ptr(),
            step.exp_avg_sq.data_ptr(), None if step.birth is None else step.birth.data_ptr(),
            *(factor.data_ptr() for factor in factors), min(factor.numel() for factor in factors),
            step.beta1, step.beta2, step.eps, step.decay, count, torch.get_num_threads(),
        )  # fmt: skip
        torch.autograd.graph.increment_version(step.changed)  # as torch's own in-place functions do
