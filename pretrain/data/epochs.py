"""How often a run goes through its text."""

from __future__ import annotations

import os

from pretrain.data.corpus import Corpus

MANY = 4.0
"""Epochs up to which repeated text is worth nearly as much as new text; beyond, it is worth less and less (Muennighoff
et al., arXiv 2305.16264)."""


def epochs(corpus: Corpus, samples: int) -> float:
    """Epochs of all text of ``corpus`` together in the run's first ``samples``."""
    return samples / sum(corpus.sizes().values())


def epochs_of_each(corpus: Corpus, samples: int) -> dict[str, float]:
    """The same of each source, by prefix."""
    sizes = corpus.sizes()
    return {prefix: count / sizes[prefix] for prefix, count in corpus.consumed(samples).items()}


def as_epochs(corpus: Corpus, samples: int) -> str:
    """The run's length as tokens and epochs, in a few words."""
    tokens, each = samples * corpus.seq_length, sum(corpus.sizes().values()) * corpus.seq_length
    return f"{tokens:,} tokens = {epochs(corpus, samples):.3g} epochs of {each:,} tokens"


def too_many(corpus: Corpus, steps: int, batch: int) -> list[str]:
    """A warning for every source of which a run of ``steps`` steps takes more than ``MANY`` epochs.

    Args:
        batch: samples per step.
    """
    found = []
    sizes = corpus.sizes()
    for prefix, count in epochs_of_each(corpus, steps * batch).items():
        if count > MANY:
            few = int(MANY * sizes[prefix] / batch) if len(sizes) == 1 else 0
            fewer = f"lower train.steps ({few} are {MANY:g} epochs) or " if few else ""
            found.append(
                f"warning: the run's {steps} steps are {count:.3g} epochs of {prefix} "
                f"({sizes[prefix] * corpus.seq_length:,} tokens), and beyond about {MANY:g} repeated text teaches less "
                f"and less (arXiv 2305.16264); {fewer}give it more text"
            )
    return found


def of_validation(training: Corpus, validation: Corpus | None, samples: int) -> list[str]:
    """Warnings about text that is validated on: one that is trained on, too, and one that has fewer than ``samples``.

    Args:
        samples: of an evaluation.
    """
    if validation is None:
        return []
    trained = {os.path.realpath(prefix) for prefix in training.sizes()}
    found = [
        f"warning: {prefix} is trained on and validated on, so that validation losses tell nothing of other text"
        for prefix in validation.sizes()
        if os.path.realpath(prefix) in trained
    ]
    if told := repeated(validation, samples):
        alone = f"; evaluation.samples={validation.num_samples} is all of it" if len(validation.sizes()) == 1 else ""
        found.append(f"warning: evaluation.samples is {samples:,}, and {told}{alone}")
    return found


def repeated(corpus: Corpus, samples: int) -> str:
    """Which source an evaluation of ``samples`` goes through more than once, the one it does most; empty where none."""
    each, sizes = epochs_of_each(corpus, samples), corpus.sizes()
    prefix = max(each, key=lambda name: each[name])
    return "" if each[prefix] <= 1 else f"{prefix} has {sizes[prefix]:,}, which are counted {each[prefix]:.3g} times"
