"""How often a run goes through its text."""

from __future__ import annotations

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
