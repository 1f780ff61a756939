"""Where documents end inside packed samples, so that attention can stay within each document."""

from __future__ import annotations

import torch


def document_segments(tokens: torch.Tensor, eos_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the documents of each sample and restart positions in each.

    The end-of-document token belongs to the document that it ends.

    Args:
        tokens: input ids, ``(batch, seq)``.
        eos_id: the end-of-document token (``corpus.eos_id``).

    Returns:
        ``(segments, positions)``, both int64 ``(batch, seq)``: the document's number in its sample (from
        0), and the token's place since the document's start (or the sample's, for the first).
    """
    ends = tokens == eos_id
    segments = ends.cumsum(1) - ends.long()
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(places)
    # A document begins after an end; each place looks back to the latest beginning.
    begins[:, 1:] = places[:, 1:] * ends[:, :-1]
    return segments, places - begins.cummax(1).values


def document_mask(segments: torch.Tensor) -> torch.Tensor:
    """Causal attention within documents.

    Args:
        segments: document numbers, ``(batch, seq)``.

    Returns:
        bool ``(batch, 1, seq, seq)``, true where query (third axis) may see key (last axis), as
        ``torch.nn.functional.scaled_dot_product_attention`` takes it.
    """
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril()[:, None]
