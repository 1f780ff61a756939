"""The train loop."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from pretrain.callbacks.base import Callback, Record
from pretrain.config import RunConfig
from pretrain.data.loader import BatchLoader
from pretrain.engine import Engine
from pretrain.heartbeat import TRAINING, Heartbeat
from pretrain.layout import Layout
from pretrain.peak import peak_memory
from pretrain.run_folder import RunFolder
from pretrain.schedule import learning_rate
from pretrain.stopping import StopRequest
from pretrain.yardstick import Yardstick
from smet.bank import MaskBank
from smet.controller import TopologyController


class Trainer:
    """One run: an engine, its data, and the position in both.

    ``step`` counts optimizer steps begun and ended, skipped ones included; ``consumed_samples`` the
    samples that went into them.
    """

    def __init__(
        self,
        config: RunConfig,
        layout: Layout,
        engine: Engine,
        bank: MaskBank,
        topology: TopologyController,
        loader: BatchLoader,
        folder: RunFolder,
        stop_request: StopRequest,
        heartbeat: Heartbeat,
    ):
        self.config, self.layout, self.engine = config, layout, engine
        self.store = engine.store
        self.bank, self.topology, self.loader = bank, topology, loader
        self.folder = folder
        self.corpora = [loader.corpus]
        """All that is read, for training and evaluation."""
        self.callbacks: list[Callback] = []
        self.products: dict[str, Any] | None = None
        """Who multiplies on what, where that was measured; see ``pretrain.products``."""
        self.step = 0
        self.consumed_samples = 0
        self.passed_over: list[tuple[int, int]] = []
        """Samples (from, to) that are left out, since training did not get over them."""
        self.stop_request, self.heartbeat = stop_request, heartbeat
        self.stop_reason = ""
        self._is_open = True
        self.yardstick: Yardstick | None = None
        """What a step's time is compared with."""
        self.fullest_rank = 0
        """Most bytes that any rank had held when all were last asked whether to stop."""
        engine.before_update(self._before_update)

    @property
    def last_step(self) -> int:
        """The step after which this process ends, if nothing stops it before."""
        stop_at = self.config.train.stop_at
        return min(stop_at, self.total_steps) if stop_at else self.total_steps

    @property
    def total_steps(self) -> int:
        """Length of the whole run in optimizer steps."""
        return self.config.train.steps

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per optimizer step, over all ranks."""
        return self.config.train.global_batch_size * self.config.data.seq_length

    def fit(self) -> None:
        """Train from the current step until the end or until a callback asks to stop."""
        try:
            self._call("on_start")
            while self.step < self.last_step and not self.stopping():
                self._call("before_step")
                record = self._train_step()
                self._call("after_step", record)
            self.layout.agree(self.folder.require_written)
            self._call("on_end")
            self.layout.agree(self._settle)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of what callbacks and the loader hold; a second time there is nothing left to do."""
        if self._is_open:
            self._is_open = False
            for callback in self.callbacks:
                callback.close()
            self.loader.close()

    def _settle(self) -> None:
        """All is saved; now see that what was read was sound, as far as that was not known before."""
        for corpus in self.corpora:
            corpus.settle()

    def request_stop(self, reason: str) -> None:
        """End the run after this step. Every rank must ask at the same step."""
        self.stop_reason = self.stop_reason or reason

    def stopping(self) -> bool:
        """Whether to end early: any rank was asked to. Collective; asked wherever the run can be left.

        Each rank's memory goes along: one reduction more for it would be one more to wait for.
        """
        if self.stop_reason:
            return True
        asked, held = bool(self.stop_request.why()), peak_memory(self.layout.device)
        someone, self.fullest_rank = self.layout.maxima(asked, held)
        if someone:
            reasons = self.layout.gather_objects(self.stop_request.why())
            self.request_stop(next(reason for reason in reasons if reason))
        return bool(self.stop_reason)

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended on request, with steps left to do."""
        return bool(self.stop_reason) and self.step < self.last_step

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            self.heartbeat.mark(callback.name, self.step)
            getattr(callback, hook)(self, *arguments)

    def _before_update(self) -> None:
        self._call("before_update")
        self.heartbeat.mark(TRAINING, self.step)

    def _next_batches(self) -> list[Tensor]:
        """This rank's micro-batches; here every rank learns what went wrong on one of them since the last step."""
        self.folder.require_written()
        return self.loader.batches(self.consumed_samples)

    def _pass_over(self, position: int) -> int:
        for begin, end in self.passed_over:
            if begin <= position < end:
                position = end
        return position

    def _train_step(self) -> Record:
        begin = time.perf_counter()
        lr = learning_rate(self.step, self.config.optimizer, self.total_steps)
        self.engine.set_learning_rate(lr)
        self.consumed_samples = self._pass_over(self.consumed_samples)
        self.heartbeat.mark("reading data", self.step)
        batches = self.layout.agree(self._next_batches)
        self.heartbeat.mark(TRAINING, self.step)
        loss = self.engine.train_step(batches)
        self.step += 1
        self.consumed_samples += self.config.train.global_batch_size
        seconds = time.perf_counter() - begin
        return {
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": self.engine.gradient_norm(),
            "tokens": self.step * self.tokens_per_step,
            "tokens_per_second": self.tokens_per_step / seconds,
            "step_seconds": seconds,
            "skipped": not self.engine.step_applied(),
        }
