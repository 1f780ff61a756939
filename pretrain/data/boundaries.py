"""Where documents end inside packed samples, so that attention can stay within each document.

Positions go on through the sample instead of starting anew in each document. Rotary embedding makes
attention depend on the distance of two tokens only (Su et al., arXiv 2104.09864, section 3.2), and all that a
token sees is in its own document: the logits are those of a restart, to rounding.
"""

from __future__ import annotations

import torch


def document_numbers(tokens: torch.Tensor, eos_id: int) -> torch.Tensor:
    """Number the documents of each sample from 0; the end-of-document token belongs to the document it ends.

    Args:
        tokens: input ids, ``(batch, seq)``.
        eos_id: the end-of-document token.

    Returns:
        int32 ``(batch, seq)``.
    """
    ends = tokens == eos_id
    return (ends.cumsum(1) - ends.long()).int()


def document_bias(documents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Causal attention within documents, as what is added to the scores: 0 where a query may see a key, else -inf.

    Args:
        documents: document numbers, ``(batch, seq)``.
        dtype: that of the queries. A bias of their dtype is made once for all layers; attention would turn a
            boolean mask into one in every layer, and keep each for the backward pass.

    Returns:
        ``(batch, 1, seq, seq)``: queries on the third axis, keys on the last; every query sees itself.
    """
    visible = (documents[:, :, None] == documents[:, None, :]).tril()
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)[:, None]
