"""Writing: a cache changes nothing, chance is seeded, text comes whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pretrain.generate import Reading, Transcript, are_sound, choose, continuation, text_behind
from pretrain.models.cache import Kept, empty, takes_cache
from pretrain.models.init import initialize
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.model import LlamaForCausalLM
from smet import sparsify
from smet.seeds import generator
from tests.families.runs import MODEL
from tests.families.tiny.config import TinyConfig
from tests.families.tiny.model import Model as TinyModel

LLAMA = LlamaConfig(
    vocab_size=97, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=48, initializer_range=0.3,
)  # fmt: skip
TOKENS = [int(token) for token in torch.randint(97, (20,), generator=torch.Generator().manual_seed(1))]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Sparse, with grouped queries, and with weights large enough to say something."""
    model = LlamaForCausalLM(LLAMA)
    initialize(model, LLAMA, seed=3)
    sparsify(model, density=0.3, quiet=True)
    return model.eval()


@pytest.mark.parametrize("cuts", [(20,), (5, 1, 1, 7, 6), (1,) * 20])
@torch.no_grad()
def test_with_a_cache_the_logits_are_those_of_the_whole_text(llama: LlamaForCausalLM, cuts: Sequence[int]) -> None:
    whole = llama(torch.tensor([TOKENS]))
    cache, parts, begin = empty(2, 20), [], 0
    for length in cuts:
        parts.append(llama(torch.tensor([TOKENS[begin : begin + length]]), cache=cache))
        begin += length
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    assert [kept.length for kept in cache] == [20, 20]
    assert cache[0].nbytes == 2 * 20 * 8 * 4, "of one head of keys, not of three"


def test_a_cached_text_is_one_document(llama: LlamaForCausalLM) -> None:
    apart = LlamaForCausalLM(LLAMA, eos_id=TOKENS[3])
    initialize(apart, LLAMA, seed=3)
    sparsify(apart, density=0.3, quiet=True)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        assert not torch.allclose(apart(tokens), llama(tokens), atol=1e-3)
        torch.testing.assert_close(apart(tokens, cache=empty(2, 20)), llama(tokens))


def test_a_cache_has_no_more_room_than_it_was_made_for() -> None:
    kept, one = Kept(3), torch.zeros(1, 1, 2, 8)
    kept.extend(one, one)
    with pytest.raises(ValueError, match="3 tokens was given 4"):
        kept.extend(one, one)


def written(model: torch.nn.Module, layers: int, cached: bool, end: int | None = None, room: int = 48) -> list[int]:
    reading = Reading(model, layers, room, cached)
    return list(continuation(reading, TOKENS, 24, lambda logits: choose(logits, 97, 0.0), end))


def test_cached_and_computed_again_are_the_same_text(llama: LlamaForCausalLM) -> None:
    assert takes_cache(llama)
    text = written(llama, 2, cached=True)
    assert text == written(llama, 2, cached=False) and len(text) == 24 and len(set(text)) > 3
    end = text[10]
    assert written(llama, 2, cached=True, end=end) == text[: text.index(end)], "the end is no part of it"
    assert written(llama, 2, cached=True, room=29) == text[:9], "no more than there is room for"


def test_a_family_without_a_cache_computes_the_whole_text_again() -> None:
    config = TinyConfig(**MODEL)
    model = TinyModel(config).eval()
    initialize(model, config, seed=3, std=0.3)
    assert not takes_cache(model)
    reading = Reading(model, config.depth, 30)
    assert reading.cache is None
    text = list(continuation(reading, TOKENS, 64, lambda logits: choose(logits, 97, 0.0), None))
    assert len(text) == 10
    with torch.no_grad():
        rows = model(torch.tensor([[*TOKENS, *text]]))[0].argmax(-1).tolist()
    assert rows[19:-1] == text


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def draws(temperature: float, top_p: float, seed: int = 0, count: int = 400) -> list[int]:
    chance = generator(seed, "test")
    return [choose(LOGITS, 5, temperature, top_p, chance) for _ in range(count)]


def test_chance_is_seeded_and_follows_the_probabilities() -> None:
    assert choose(LOGITS, 5, 0.0) == 4
    assert draws(1.0, 1.0) == draws(1.0, 1.0) != draws(1.0, 1.0, seed=1)
    counts = torch.bincount(torch.tensor(draws(1.0, 1.0, count=4000)), minlength=5) / 4000
    torch.testing.assert_close(counts, torch.softmax(LOGITS, 0), atol=0.03, rtol=0)
    assert draws(0.01, 1.0, count=50) == [4] * 50, "cold"


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {4}), (0.7, {4, 0}), (0.9, {4, 0, 1}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    """Probabilities: .64, .23, .09, .03, .01."""
    assert set(draws(1.0, top_p, count=2000)) == kept


def test_rows_beyond_the_tokenizers_tokens_are_never_chosen() -> None:
    assert choose(LOGITS, 4, 0.0) == 0
    assert {choose(LOGITS, 4, 2.0, chance=generator(seed, "test")) for seed in range(200)} == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_any_cold_is_the_likeliest(temperature: float) -> None:
    assert choose(LOGITS, 5, temperature) == 4


@pytest.mark.parametrize(("odd", "sound"), [(math.nan, False), (math.inf, False), (-math.inf, True)])
def test_logits_that_are_not_sound_are_no_chances(odd: float, sound: bool) -> None:
    logits = torch.tensor([1.0, odd, 2.0])
    assert are_sound(logits) == sound
    assert choose(logits, 3, 1.0, chance=generator(1, "test")) in ({0, 2} if sound else {1})
    assert choose(logits, 1, 1.0) == 0, "those of padding do not matter"


def bytewise(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "caf\u00e9 \U0001f9ea \u4f60\u597d", "broken \u4f60"])
def test_text_comes_in_whole_characters_and_all_of_it(text: str) -> None:
    prompt, tokens = list("\u00fcber ".encode()), list(text.encode())
    tokens = tokens[:-1] if "broken" in text else tokens
    transcript, told = Transcript(bytewise, prompt), ""
    for token in tokens:
        news = transcript.add(token)
        assert "\ufffd" not in news
        told += news
    told += transcript.rest()
    assert told == transcript.text == text_behind(bytewise, prompt, tokens) == bytewise(tokens)
    assert transcript.rest() == ""


def test_what_is_no_character_comes_at_the_end_once(llama: LlamaForCausalLM) -> None:
    transcript = Transcript(bytewise, [65])
    assert transcript.add(0xC3) == ""
    assert transcript.add(66) == "\ufffdB"
    assert transcript.add(0xC3) == "" and transcript.rest() == "\ufffd"


def test_a_model_of_bf16_gives_logits_to_choose_from(llama: LlamaForCausalLM) -> None:
    model = LlamaForCausalLM(LLAMA).to(torch.bfloat16)
    logits: Tensor = Reading(model, 2, 8).after([1, 2])
    assert logits.dtype == torch.float32 and logits.shape == (97,)
