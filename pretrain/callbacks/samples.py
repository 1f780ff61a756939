"""What the model makes of a few texts, while it trains."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pretrain.callbacks.base import Callback, Record
from pretrain.data.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import DataError
from pretrain.generate import choose, text_behind
from pretrain.outside import printable
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import SAMPLES
from smet.seeds import generator

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

STEP = 16
"""Lengths that texts are filled up to are multiples of it: few enough shapes, and all that ranks have to share out."""
SHOWN = 160
"""Characters of a text on the screen."""


class SamplesCallback(Callback):
    """Goes on with ``evaluation.prompts``, in ``samples.jsonl`` and on the screen.

    The whole text is computed again for every token, by the same forward pass as a validation loss and with no more
    tokens: so every layout can, with the same collectives on all ranks. What one rank chooses, all take.
    """

    name = "samples"

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._tokenizer: Tokenizer
        self._prompts: list[list[int]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Read tokenizer and prompts. Collective.

        Raises:
            DataError: there is no tokenizer, or a prompt is too long; on every rank.
        """
        trainer.layout.agree(lambda: self._read(trainer))

    def _read(self, trainer: Trainer) -> None:
        config = trainer.config
        assert config.data.tokenizer is not None
        self._tokenizer = load_tokenizer(config.data.tokenizer, None, trainer.loader.corpus.eos_id)
        end, room = self._tokenizer.eos_id, config.data.seq_length - config.evaluation.prompts_tokens
        self._prompts = [self._tokenizer.encode(text).tolist() or [end] for text in config.evaluation.prompts]
        for number, tokens in enumerate(self._prompts):
            if len(tokens) > room:
                raise DataError(
                    f"evaluation.prompts[{number}] has {len(tokens)} tokens, expected at most {room}: data.seq_length "
                    f"{config.data.seq_length} less prompts_tokens {config.evaluation.prompts_tokens}"
                )

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write where that is due: every ``prompts_interval`` steps or at evaluations, and after the last step."""
        settings = trainer.config.evaluation
        interval = settings.prompts_interval or settings.interval
        if trainer.step != trainer.total_steps and (not interval or trainer.step % interval):
            return
        rows = trainer.config.train.micro_batch_size
        texts: list[list[int]] = []
        for begin in range(0, len(self._prompts), rows):
            texts += self._continued(trainer, begin, self._prompts[begin : begin + rows])
        if trainer.layout.is_main and not trainer.stop_reason:
            self._tell(trainer.step, settings.prompts, texts)

    def _continued(self, trainer: Trainer, first: int, prompts: list[list[int]]) -> list[list[int]]:
        """Each prompt with what follows it, a micro-batch of them at once; cut off where the run is to stop."""
        settings, seed = trainer.config.evaluation, trainer.config.train.seed
        texts = [list(prompt) for prompt in prompts]
        chance = [generator(seed, "sample", trainer.step, first + row) for row in range(len(texts))]
        ended = [False] * len(texts)
        for _ in range(settings.prompts_tokens):
            if all(ended) or trainer.stopping():
                break
            logits = trainer.engine.next_logits(*self._batch(trainer, texts))
            own = [0] * len(texts) if logits is None else [
                choose(logits[row], self._tokenizer.vocab_size, settings.prompts_temperature, chance=chance[row])
                for row in range(len(texts))
            ]  # fmt: skip
            for row, token in enumerate(trainer.layout.told(own)):
                ended[row] = ended[row] or token == self._tokenizer.eos_id
                texts[row] += [] if ended[row] else [token]
        return texts

    @staticmethod
    def _batch(trainer: Trainer, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Texts side by side, filled up behind their ends, where no token before looks; and their last positions."""
        config, fixed = trainer.config, trainer.engine.fixed_rows
        step = STEP * trainer.layout.tensor_size
        longest = -(-max(map(len, texts)) // step) * step
        width = config.data.seq_length if fixed else min(config.data.seq_length, longest)
        tokens = torch.zeros(config.train.micro_batch_size if fixed else len(texts), width, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
        return tokens, torch.tensor([len(text) - 1 for text in texts])

    def _tell(self, step: int, prompts: tuple[str, ...], texts: list[list[int]]) -> None:
        for prompt, tokens, text in zip(prompts, self._prompts, texts, strict=True):
            written = text_behind(self._tokenizer.decode, tokens, text[len(tokens) :])
            self.folder.append(SAMPLES, {"step": step, "prompt": prompt, "text": written})
            print(f"sample at step {step}: {_shown(prompt)} -> {_shown(written)}", flush=True)


def _shown(text: str) -> str:
    """``text`` on one line, in quotes."""
    return printable(json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}...", ensure_ascii=False))
