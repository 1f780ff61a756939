"""What one AdamW step works on: the same for every version of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class AdamStep:
    """One step over flat vectors, with step sizes by age.

    For element i with birth code c: ``w -= step_size[c] * m / (sqrt(v) / correction[c] + eps) + decay * w``.
    """

    weight: Tensor
    """Master weights ``(n,)``; changed in place, as both moments are."""
    grad: Tensor
    """``(n,)`` in any floating dtype."""
    exp_avg: Tensor
    """First moment ``(n,)``, in the dtype of ``weight``."""
    exp_avg_sq: Tensor
    """Second moment, likewise."""
    birth: Tensor | None
    """uint8 codes ``(n,)``, or None where every element has code 0."""
    step_size: Tensor
    """``lr * r / (1 - beta1**age)`` per code, ``(codes,)``."""
    correction: Tensor
    """``sqrt(1 - beta2**age)`` per code, ``(codes,)``."""
    beta1: float
    beta2: float
    eps: float
    decay: float
    """Learning rate times weight decay."""

    @property
    def changed(self) -> list[Tensor]:
        """What the step writes."""
        return [self.weight, self.exp_avg, self.exp_avg_sq]

    @property
    def vectors(self) -> list[Tensor]:
        """All that has an entry per element."""
        return [*self.changed, self.grad, *([] if self.birth is None else [self.birth])]

    def part(self, here: slice) -> AdamStep:
        """The same for some of the elements; the gradient in the dtype of the weights."""
        return replace(
            self, weight=self.weight[here], grad=self.grad[here].to(self.weight.dtype), exp_avg=self.exp_avg[here],
            exp_avg_sq=self.exp_avg_sq[here], birth=None if self.birth is None else self.birth[here],
        )  # fmt: skip
