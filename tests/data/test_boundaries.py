"""Documents in a packed sample do not see each other."""

from __future__ import annotations

import torch

from pretrain.data.boundaries import document_mask, document_segments

TOKENS = torch.tensor([[5, 6, 2, 7, 2, 2, 8, 9], [2, 5, 5, 5, 5, 5, 5, 2]])


def test_segments_and_positions() -> None:
    segments, positions = document_segments(TOKENS, eos_id=2)
    assert segments.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_mask_is_causal_and_stays_in_the_document() -> None:
    segments, _ = document_segments(TOKENS, eos_id=2)
    mask = document_mask(segments)
    assert mask.shape == (2, 1, 8, 8)
    for batch in range(2):
        for query in range(8):
            for key in range(8):
                allowed = key <= query and segments[batch, key] == segments[batch, query]
                assert bool(mask[batch, 0, query, key]) == bool(allowed)


def test_attention_under_the_mask_equals_attention_alone() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 8, 4, dtype=torch.float64)
    segments, _ = document_segments(TOKENS[:1], eos_id=2)
    attend = torch.nn.functional.scaled_dot_product_attention
    packed = attend(query, key, value, attn_mask=document_mask(segments))
    for start, end in ((0, 3), (3, 5), (5, 6), (6, 8)):
        alone = attend(*(tensor[:, :, start:end] for tensor in (query, key, value)), is_causal=True)
        torch.testing.assert_close(packed[:, :, start:end], alone)
