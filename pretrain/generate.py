"""Text from a model: which token comes next, again and again, until the document ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.models.cache import Cache, empty, takes_cache

Decode = Callable[[Sequence[int]], str]
CUT_OFF = "\ufffd"
"""What decoders give for bytes that are no whole character yet."""


def are_sound(logits: Tensor) -> bool:
    """Whether logits ``(v,)`` say which token comes next: none is NaN or infinite, but those that rule a token out."""
    return bool(logits.max().isfinite())


def choose(
    logits: Tensor, vocabulary: int, temperature: float, top_p: float = 1.0, chance: torch.Generator | None = None
) -> int:
    """The next token: the likeliest, or one drawn at random.

    Args:
        logits: ``(v,)``; of a model that has diverged, which are not sound, the largest is taken.
        vocabulary: tokens of the tokenizer. A model may have more rows, to be of a round size: they are no text.
        temperature: logits are divided by it; 0 = the likeliest, the first of several.
        top_p: draw among the likeliest tokens that together have this probability, at least one (Holtzman et al.,
            arXiv 1904.09751).
        chance: on the CPU; None = torch's own.
    """
    logits = logits[:vocabulary]
    if temperature == 0 or not are_sound(logits):
        return int(logits.argmax())
    logits = logits.detach().cpu().double()
    # The largest becomes 0, which stays one at any temperature; divided first, it could overflow.
    chances, tokens = torch.softmax((logits - logits.max()) / temperature, -1).sort(descending=True, stable=True)
    before = chances.cumsum(-1) - chances
    chances = chances.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(chances, 1, generator=chance)
    return int(tokens[drawn])


class Reading:
    """One text on its way through a model.

    Args:
        model: token ids ``(1, s)`` to logits ``(1, s, v)``.
        layers: of the model.
        room: tokens that the text may have.
        cached: keep keys and values; False, or a family that cannot = all of the text is computed again each time.
    """

    def __init__(self, model: Any, layers: int, room: int, cached: bool = True):
        self.model, self.room = model, room
        self.cache: Cache | None = empty(layers, room) if cached and takes_cache(model) else None
        self._tokens: list[int] = []
        self._device = next(iter(model.parameters())).device

    @torch.no_grad()
    def after(self, tokens: Sequence[int]) -> Tensor:
        """Logits ``(v,)`` of what follows when ``tokens`` have been added to the text."""
        self._tokens += tokens
        if self.cache is None:
            logits: Tensor = self.model(self._batch(self._tokens))
        else:
            logits = self.model(self._batch(tokens), cache=self.cache)
        return logits[0, -1].float()

    def _batch(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self._device)


def continuation(
    reading: Reading, prompt: Sequence[int], most: int, pick: Callable[[Tensor], int], end: int | None
) -> Iterator[int]:
    """The tokens that follow ``prompt``, one by one.

    Args:
        most: tokens to generate at most, as far as the reading has room for them.
        pick: see ``choose``.
        end: the end-of-document token, which ends it and is not given; None = there is none.
    """
    new = list(prompt)
    for _ in range(min(most, reading.room - len(new))):
        token = pick(reading.after(new))
        if token == end:
            return
        yield token
        new = [token]


def text_behind(decode: Decode, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of ``tokens`` where they follow ``prompt``: alone, the first piece might lose its space."""
    return decode([*prompt, *tokens])[len(decode(prompt)) :]


class Transcript:
    """The text of tokens that come one by one, as it grows.

    Args:
        decode: token ids to text.
        prompt: what the tokens follow; its text is not part of theirs.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]):
        self._decode, self._prompt = decode, list(prompt)
        self._tokens: list[int] = []
        self._told = 0

    @property
    def text(self) -> str:
        """All of it."""
        return text_behind(self._decode, self._prompt, self._tokens)

    def add(self, token: int) -> str:
        """Take the next token; returns the characters that are certain by now, and were not given before."""
        self._tokens.append(token)
        return self._news(self.text.rstrip(CUT_OFF))

    def rest(self) -> str:
        """What is still to be given at the end."""
        return self._news(self.text)

    def _news(self, text: str) -> str:
        news, self._told = text[self._told :], max(self._told, len(text))
        return news
