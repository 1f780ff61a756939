"""SmetAdamW: AdamW whose bias correction and warm-up follow each weight's own age.

Source: Xiao et al., arXiv 2606.00888. For weight i with gradient g, age a (1 at its first update),
learning rate ``lr_d = lr * lr_factor`` and warm-up factor r:

    m <- b1 m + (1 - b1) g                  v <- b2 v + (1 - b2) g^2
    w <- w - lr_d * (r * (m / (1 - b1^a)) / (sqrt(v / (1 - b2^a)) + eps) + weight_decay * w)

With every weight at age t and r = 1 this is torch.optim.AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from smet import kernels
from smet.ages import AgeTable, Remedies


class SmetAdamW(torch.optim.Optimizer):
    """AdamW over dense tensors and over the active values of sparse layers.

    Works on ordinary parameters and on the flat partitions that ZeRO hands to ``step`` instead.
    Moments are fp32 (fp64 for fp64 weights); a 16-bit parameter gets an fp32 master copy.

    Args:
        params: parameters or groups. A group may set ``aged`` (its weights can be regrown),
            ``lr_factor`` (default 1; multiplies ``lr`` at every step, never compounds), ``lr``,
            ``betas``, ``eps`` and ``weight_decay``.
        remedies: bias correction and warm-up; see ``SmetConfig``.
        external_clock: True where an engine may call ``step`` any number of times per optimizer
            step (ZeRO-3 calls it once per sub-group, some engines once before training). Then
            nothing happens before ``start()``, and only ``advance()`` moves time.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        remedies: Remedies | None = None,
        external_clock: bool = False,
    ):
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "lr_factor": 1.0, "aged": False,
        }  # fmt: skip
        super().__init__(params, defaults)
        beta1, beta2 = (max(group["betas"][index] for group in self.param_groups) for index in (0, 1))
        self.ages = AgeTable(beta1, beta2, remedies or Remedies())
        self.steps_done = 0
        self.external_clock = external_clock
        self._running = not external_clock

    def start(self) -> None:
        """Let ``step`` change weights from now on (with ``external_clock``)."""
        self._running = True

    def advance(self) -> None:
        """Record that one optimizer step was applied: every age grows by one."""
        self.steps_done += 1

    def ensure_state(self, param: Tensor, aged: bool) -> dict[str, Tensor]:
        """Create the state of one parameter or partition if it is not there yet, and return it."""
        state = self.state[param]
        if "exp_avg" not in state:
            dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
            state["exp_avg"] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
            if aged:
                state["birth"] = torch.zeros_like(param, dtype=torch.uint8, requires_grad=False)
            if param.dtype not in (torch.float32, torch.float64):
                state["master"] = param.detach().to(dtype, copy=True)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one step to every parameter that has a gradient.

        Returns:
            What ``closure`` returned, if one was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._running:
            return loss
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        if not self.external_clock:
            self.advance()
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.ensure_state(param, group["aged"])
        master = state.get("master", param)
        beta1, beta2 = group["betas"]
        lr = float(group["lr"]) * group["lr_factor"]
        step_size, correction = self.ages.tables(self.steps_done + 1, lr, master, (beta1, beta2))
        kernels.adamw(
            master.detach().view(-1), grad.reshape(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1),
            state["birth"].view(-1) if "birth" in state else None,
            step_size, correction, beta1, beta2, group["eps"], lr * group["weight_decay"],
        )  # fmt: skip
        if "master" in state:
            param.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, plus the clock and the age table under ``smet``."""
        return {**super().state_dict(), "smet": {"steps_done": self.steps_done, **self.ages.state_dict()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict``; birth codes keep their one-byte type."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "smet"})
        params = [param for group in self.param_groups for param in group["params"]]
        for index, saved in state_dict["state"].items():  # torch casts state to the parameter's dtype: undo that
            for key, value in saved.items():
                self.state[params[index]][key] = value.to(params[index].device, copy=True)
        self.steps_done = state_dict["smet"]["steps_done"]
        self.ages.load_state_dict(state_dict["smet"])
