"""Documents in a packed sample do not see each other."""

from __future__ import annotations

import pytest
import torch

from pretrain.data.boundaries import document_bias, document_numbers

TOKENS = torch.tensor([[5, 6, 2, 7, 2, 2, 8, 9], [2, 5, 5, 5, 5, 5, 5, 2]])


def test_an_end_belongs_to_the_document_it_ends() -> None:
    documents = document_numbers(TOKENS, eos_id=2)
    assert documents.dtype == torch.int32
    assert documents.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_is_causal_and_stays_in_the_document(dtype: torch.dtype) -> None:
    documents = document_numbers(TOKENS, eos_id=2)
    bias = document_bias(documents, dtype)
    assert bias.shape == (2, 1, 8, 8) and bias.dtype == dtype
    for batch in range(2):
        for query in range(8):
            for key in range(8):
                allowed = key <= query and documents[batch, key] == documents[batch, query]
                assert bias[batch, 0, query, key].item() == (0.0 if allowed else -torch.inf)


def test_attention_under_the_bias_equals_attention_alone() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 8, 4, dtype=torch.float64)
    bias = document_bias(document_numbers(TOKENS[:1], eos_id=2), query.dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    packed = attend(query, key, value, attn_mask=bias)
    for start, end in ((0, 3), (3, 5), (5, 6), (6, 8)):
        alone = attend(*(tensor[:, :, start:end] for tensor in (query, key, value)), is_causal=True)
        torch.testing.assert_close(packed[:, :, start:end], alone)
