"""Corpora, blends and curricula as endless sequences of samples, addressed by sample number alone.

``sample(n)`` depends on the data, the sequence length, the seed and n only: not on ranks, batch sizes
or what was drawn before. So the position of a run is one number, the samples it consumed, and how many
of them each source gave is a function of that number.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.data.blend import Blend
from pretrain.data.packed import TokenCorpus, digest_of
from pretrain.errors import DataError, nearest

__all__ = ["BlendedCorpus", "Corpus", "Curriculum", "TokenCorpus", "check_vocabulary", "open_corpus"]

VOCAB_PADDING = 1024
"""A model may have fewer than this many rows more than the tokenizer (padding for tensor parallelism)."""


class Corpus(Protocol):
    """What training needs to know of a corpus, a blend or a curriculum."""

    seq_length: int
    vocab_size: int | None
    tokenizer_sha256: str | None
    eos_id: int | None
    fingerprint: str
    """Changes with anything that changes ``sample``."""

    @property
    def num_samples(self) -> int:
        """Samples in one epoch (of all corpora)."""

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number`` (0 = the run's first), int64 ``(seq_length + 1,)``."""

    def limit_ids(self, vocab_size: int) -> None:
        """Refuse, in ``sample``, ids from ``vocab_size`` on."""

    def settle(self, wait: bool = True) -> None:
        """Raise ``DataError`` if an index is damaged; without ``wait``, if that is known by now.

        Only the process that checks knows: call it where all ranks learn what one finds.
        """

    def consumed(self, num_samples: int) -> dict[str, int]:
        """Samples each source gave among the first ``num_samples``, by prefix; times ``seq_length`` for tokens."""

    def sizes(self) -> dict[str, int]:
        """Samples in one epoch of each source, by prefix."""


class BlendedCorpus:
    """Several corpora interleaved in exact proportions of samples; each goes through its own epochs.

    Args:
        parts: ``(corpus, weight)`` pairs; only the ratios of the weights matter.

    Raises:
        DataError: weights that are not positive, or corpora made with different tokenizers.
    """

    def __init__(self, parts: Sequence[tuple[TokenCorpus, float]]):
        self.blend = Blend([weight for _, weight in parts])
        self.corpora = [corpus for corpus, _ in parts]
        known = check_same_tokenizer(self.corpora)
        self.seq_length = known.seq_length
        self.vocab_size, self.tokenizer_sha256, self.eos_id = known.vocab_size, known.tokenizer_sha256, known.eos_id
        self.fingerprint = digest_of(
            [(c.fingerprint, str(w)) for c, w in zip(self.corpora, self.blend.weights, strict=True)]
        )

    @property
    def num_samples(self) -> int:
        """Samples in one epoch of every corpus."""
        return sum(corpus.num_samples for corpus in self.corpora)

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number``, int64 ``(seq_length + 1,)``."""
        which, own_number = self.blend.locate(number)
        return self.corpora[which].sample(own_number)

    def limit_ids(self, vocab_size: int) -> None:
        """Refuse, in ``sample``, ids from ``vocab_size`` on."""
        for corpus in self.corpora:
            corpus.limit_ids(vocab_size)

    def settle(self, wait: bool = True) -> None:
        """Raise ``DataError`` if an index is damaged; without ``wait``, if that is known by now."""
        for corpus in self.corpora:
            corpus.settle(wait)

    def consumed(self, num_samples: int) -> dict[str, int]:
        """Samples each corpus gave among the first ``num_samples``, by prefix."""
        given: Counter[str] = Counter()
        for corpus, count in zip(self.corpora, self.blend.counts(num_samples), strict=True):
            given[corpus.prefix] += count
        return dict(given)

    def sizes(self) -> dict[str, int]:
        """Samples in one epoch of each corpus, by prefix."""
        return {corpus.prefix: corpus.num_samples for corpus in self.corpora}


class Curriculum:
    """Blends one after another. A corpus that stands in several goes on where the earlier one left it.

    Args:
        stages: ``(blend, end)``: ``end`` is the run's sample number at which the next stage takes over;
            that of the last is not used.

    Raises:
        DataError: ends that do not rise, or corpora made with different tokenizers.
    """

    def __init__(self, stages: Sequence[tuple[BlendedCorpus, int]]):
        self.blends = [blend for blend, _ in stages]
        self._ends = [end for _, end in stages[:-1]]
        self._starts = [0, *self._ends]
        if any(end <= start for start, end in zip(self._starts, self._ends, strict=False)):
            raise DataError(f"stages end at samples {self._ends}, expected each later than the one before")
        self._corpora = {id(corpus): corpus for blend in self.blends for corpus in blend.corpora}
        known = check_same_tokenizer(list(self._corpora.values()))
        self.seq_length = known.seq_length
        self.vocab_size, self.tokenizer_sha256, self.eos_id = known.vocab_size, known.tokenizer_sha256, known.eos_id
        self.fingerprint = digest_of([blend.fingerprint for blend in self.blends], self._ends)
        self._given = self._given_before()

    def _given_before(self) -> list[Counter[int]]:
        """For each stage, what each corpus gave in the stages before it."""
        before: Counter[int] = Counter()
        given = [Counter(before)]
        for blend, start, end in zip(self.blends, self._starts, self._ends, strict=False):
            before.update(self._given_in(blend, end - start))
            given.append(Counter(before))
        return given

    @staticmethod
    def _given_in(blend: BlendedCorpus, samples: int) -> dict[int, int]:
        return {id(c): count for c, count in zip(blend.corpora, blend.blend.counts(samples), strict=True)}

    @property
    def num_samples(self) -> int:
        """Samples in one epoch of every corpus."""
        return sum(corpus.num_samples for corpus in self._corpora.values())

    def stage(self, number: int) -> int:
        """The stage that sample ``number`` belongs to, from 0."""
        return bisect_right(self._ends, number)

    def describe(self, stage: int) -> str:
        """One line about a stage: when it begins, and its corpora with their shares."""
        blend, start = self.blends[stage], self._starts[stage] * self.seq_length
        total = sum(blend.blend.weights)
        shares = (f"{c.prefix} {float(w / total):.4g}" for c, w in zip(blend.corpora, blend.blend.weights, strict=True))
        return f"curriculum: stage {stage + 1} of {len(self.blends)}, from token {start:,} on: {', '.join(shares)}"

    def sample(self, number: int) -> np.ndarray:
        """Token ids of sample ``number``, int64 ``(seq_length + 1,)``."""
        stage = self.stage(number)
        blend = self.blends[stage]
        which, own_number = blend.blend.locate(number - self._starts[stage])
        corpus = blend.corpora[which]
        return corpus.sample(self._given[stage][id(corpus)] + own_number)

    def limit_ids(self, vocab_size: int) -> None:
        """Refuse, in ``sample``, ids from ``vocab_size`` on."""
        for corpus in self._corpora.values():
            corpus.limit_ids(vocab_size)

    def settle(self, wait: bool = True) -> None:
        """Raise ``DataError`` if an index is damaged; without ``wait``, if that is known by now."""
        for corpus in self._corpora.values():
            corpus.settle(wait)

    def consumed(self, num_samples: int) -> dict[str, int]:
        """Samples each corpus gave among the first ``num_samples``, by prefix."""
        stage = self.stage(num_samples)
        given = Counter(self._given[stage])
        given.update(self._given_in(self.blends[stage], num_samples - self._starts[stage]))
        by_prefix: Counter[str] = Counter()
        for key, corpus in self._corpora.items():
            by_prefix[corpus.prefix] += given[key]
        return dict(by_prefix)

    def sizes(self) -> dict[str, int]:
        """Samples in one epoch of each corpus of any stage, by prefix."""
        return {corpus.prefix: corpus.num_samples for corpus in self._corpora.values()}


def open_corpus(
    spec: str | Path | Sequence[dict[str, Any]], seq_length: int, seed: int, check: bool = True
) -> TokenCorpus | BlendedCorpus | Curriculum:
    """Open a corpus, a blend or a curriculum.

    Args:
        spec: a prefix; or a list of ``{"path": prefix, "weight": number}``; or a list of stages
            ``{"until_tokens": number, "blend": [{"path", "weight"}, ...]}``, the last without an end.
        seq_length: tokens the model sees per sample.
        seed: of the order of samples.
        check: see ``TokenCorpus``.

    Raises:
        DataError: see the classes above; or a spec of another form.
    """
    if isinstance(spec, (str, Path)):
        return TokenCorpus(spec, seq_length, seed, check)
    if not isinstance(spec, Sequence) or not spec or not all(isinstance(e, dict) for e in spec):
        raise DataError(f"data is {spec!r}, expected a path prefix or a list of {{path, weight}}")
    entries: list[Any] = list(spec)
    opened: dict[tuple[str, int], TokenCorpus] = {}
    if "blend" not in entries[0]:
        return _open_blend(entries, seq_length, seed, opened, check)
    stages = []
    for number, entry in enumerate(entries):
        last = number == len(entries) - 1
        _check_keys(entry, ("blend",) if last else ("blend", "until_tokens"), "a stage")
        blend = _open_blend(entry["blend"], seq_length, seed, opened, check)
        stages.append((blend, 0 if last else -(-int(entry["until_tokens"]) // seq_length)))
    return Curriculum(stages)


def _open_blend(
    entries: Sequence[dict[str, Any]],
    seq_length: int,
    seed: int,
    opened: dict[tuple[str, int], TokenCorpus],
    check: bool,
) -> BlendedCorpus:
    """``opened`` holds the corpora by prefix and by how often it was listed before in the same blend."""
    parts, listed = [], Counter[str]()
    for entry in entries:
        _check_keys(entry, ("path",), "a blend entry", optional=("weight",))
        path = str(entry["path"])
        # A second mention has a seed of its own, so that it does not give the same samples again.
        place = os.path.realpath(path)  # under whatever spelling
        key = (place, listed[place])
        listed[place] += 1
        if key not in opened:
            opened[key] = TokenCorpus(path, seq_length, seed + key[1], check)
        parts.append((opened[key], entry.get("weight", 1.0)))
    return BlendedCorpus(parts)


def _check_keys(entry: Any, required: Sequence[str], what: str, optional: Sequence[str] = ()) -> None:
    known = (*required, *optional)
    if not isinstance(entry, dict):
        raise DataError(f"{what} is {entry!r}, expected the keys {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise DataError(f"{what} has unknown key '{key}', expected {', '.join(known)}{nearest(str(key), known)}")
    if missing := [key for key in required if key not in entry]:
        raise DataError(f"{what} lacks '{missing[0]}', expected the keys {', '.join(known)}")


def check_same_tokenizer(corpora: Sequence[TokenCorpus]) -> TokenCorpus:
    """Return a corpus that stands for all, one with a manifest if any has one.

    Raises:
        DataError: two were made with different tokenizers or end-of-document tokens.
    """
    known = [corpus for corpus in corpora if corpus.tokenizer_sha256 is not None]
    for corpus in known[1:]:
        if corpus.eos_id != known[0].eos_id and corpus.tokenizer_sha256 == known[0].tokenizer_sha256:
            raise DataError(
                f"documents of corpora {known[0].prefix} and {corpus.prefix} end with different tokens "
                f"({known[0].eos_id} and {corpus.eos_id}); preprocess them with one --eos-token"
            )
        if (corpus.tokenizer_sha256, corpus.vocab_size) != (known[0].tokenizer_sha256, known[0].vocab_size):
            raise DataError(
                f"corpora {known[0].prefix} and {corpus.prefix} were made with different tokenizers "
                f"({known[0].tokenizer_sha256!s:.12} of {known[0].vocab_size} ids, {corpus.tokenizer_sha256!s:.12} of "
                f"{corpus.vocab_size}); preprocess them with one tokenizer"
            )
    return (known or list(corpora))[0]


def end_of_document(corpora: Sequence[Corpus], given: int | None) -> int:
    """The end-of-document token of ``corpora``: ``given``, or else what their manifests say.

    Raises:
        DataError: no manifest says it and none is given, or two of them differ.
    """
    known = {corpus.eos_id for corpus in corpora if corpus.eos_id is not None} | {given}
    known.discard(None)
    if not known:
        raise DataError(
            "data.reset_attention needs the end-of-document token, which corpora without a manifest do not name; set "
            "data.eos_id"
        )
    if len(known) > 1:
        found = ", ".join(str(token) for token in sorted(token for token in known if token is not None))
        said = "" if given is None else f"; data.eos_id is {given}"
        raise DataError(f"documents end with different tokens: {found}{said}; preprocess with one tokenizer and token")
    return next(token for token in known if token is not None)


def check_vocabulary(corpus: Corpus, model_vocab_size: int, tokenizer_sha256: str | None = None) -> None:
    """Raise ``DataError`` unless the corpus fits a model of ``model_vocab_size`` rows and its tokenizer.

    A model may have up to ``VOCAB_PADDING`` rows more. The vocabulary of a corpus without a manifest is
    not known; for it, and as a last check for all, ``corpus.sample`` refuses ids beyond the model's rows.
    """
    found = corpus.vocab_size
    if found is not None and not found <= model_vocab_size < found + VOCAB_PADDING:
        raise DataError(
            f"the data has a vocabulary of {found}, the model of {model_vocab_size}; set the model's vocab_size to "
            f"{found} or preprocess with the model's tokenizer"
        )
    if tokenizer_sha256 and corpus.tokenizer_sha256 and tokenizer_sha256 != corpus.tokenizer_sha256:
        raise DataError(
            f"the data was made with tokenizer {corpus.tokenizer_sha256[:12]}, the model expects "
            f"{tokenizer_sha256[:12]} (sha256); preprocess with the model's tokenizer"
        )
    corpus.limit_ids(model_vocab_size)
