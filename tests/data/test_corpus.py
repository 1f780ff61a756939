"""Packed samples, blends in exact proportions, fingerprints, and checks against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.data.blend import Blend
from pretrain.data.corpus import TokenCorpus, check_vocabulary, end_of_document, open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.data.manifest import manifest_path, read_manifest
from pretrain.errors import DataError
from tests.data.corpora import make_corpus


def test_an_epoch_covers_every_window_once(tmp_path: Path) -> None:
    corpus = TokenCorpus(make_corpus(tmp_path / "c", 101), seq_length=10, seed=3)
    assert corpus.num_samples == 10
    for epoch in range(3):
        samples = [corpus.sample(epoch * 10 + i) for i in range(10)]
        assert all(s.dtype == np.int64 and s.shape == (11,) for s in samples)
        assert sorted(int(s[0]) for s in samples) == list(range(0, 100, 10))
        assert all((np.diff(s) == 1).all() for s in samples)


def test_epochs_are_shuffled_differently(tmp_path: Path) -> None:
    corpus = TokenCorpus(make_corpus(tmp_path / "c", 1001), seq_length=10, seed=3)
    first, second = ([int(corpus.sample(e * 100 + i)[0]) for i in range(100)] for e in range(2))
    assert first != second
    assert first != sorted(first)


def test_too_small_a_corpus_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", 10)
    assert TokenCorpus(tmp_path / "c", 9, 0).num_samples == 1
    with pytest.raises(DataError, match="has 10 tokens, one sample needs 11"):
        TokenCorpus(tmp_path / "c", 10, 0)


@pytest.mark.parametrize("weights", [[1], [0.7, 0.3], [1, 1, 1], [0.1, 0.2, 0.3, 0.4], [5, 1e-3, 2.5, 7, 1]])
def test_blend_is_exact_after_every_sample(weights: list[float]) -> None:
    blend = Blend(weights)
    given = [0] * len(weights)
    for number in range(3000):
        which, own = blend.locate(number)
        assert own == given[which]
        given[which] += 1
        assert blend.counts(number + 1) == given
        for count, weight in zip(given, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) <= max(1, len(weights).bit_length())


def test_blend_of_round_weights_is_exact_after_a_round() -> None:
    assert Blend([0.7, 0.2, 0.1]).counts(10**12) == [7 * 10**11, 2 * 10**11, 10**11]


@pytest.mark.parametrize("weights", [[], [0.5, 0], [1, -1], [float("nan")], [float("inf"), 1], ["x"]])
def test_bad_weights_are_refused(weights: list) -> None:
    with pytest.raises(DataError, match="expected positive numbers"):
        Blend(weights)


def test_blended_corpus_draws_each_corpus_in_its_own_order(tmp_path: Path) -> None:
    a = make_corpus(tmp_path / "a", 401)
    b = make_corpus(tmp_path / "b", 101, first=500)
    blend = open_corpus([{"path": a, "weight": 3}, {"path": b, "weight": 1}], seq_length=10, seed=5)
    drawn = [int(blend.sample(n)[0]) for n in range(40)]
    alone = TokenCorpus(a, 10, 5)
    assert [token for token in drawn if token < 500] == [int(alone.sample(n)[0]) for n in range(30)]
    assert len(set(drawn)) == 40
    assert blend.consumed(40) == {a: 30, b: 10}


def test_a_corpus_listed_twice_gives_two_orders(tmp_path: Path) -> None:
    a = make_corpus(tmp_path / "a", 1001)
    blend = open_corpus([{"path": a}, {"path": a}], seq_length=10, seed=5)
    first, second = ([int(blend.sample(n)[0]) for n in range(start, 40, 2)] for start in (0, 1))
    assert first != second


def test_fingerprint_follows_content_and_order(tmp_path: Path) -> None:
    a, same = make_corpus(tmp_path / "a", 401), make_corpus(tmp_path / "same", 401)
    other = make_corpus(tmp_path / "other", 401, first=1)
    fingerprint = open_corpus(a, 10, 5).fingerprint
    assert open_corpus(same, 10, 5).fingerprint == fingerprint
    assert (
        len({fingerprint, *(open_corpus(*args).fingerprint for args in [(other, 10, 5), (a, 20, 5), (a, 10, 6)])}) == 4
    )


def test_fingerprint_without_a_manifest_sees_the_tokens(tmp_path: Path) -> None:
    prints = []
    for name, first in (("a", 0), ("b", 0), ("c", 1)):
        prefix = make_corpus(tmp_path / name, 401, first=first)
        manifest_path(prefix).unlink()
        corpus = open_corpus(prefix, 10, 5)
        assert (corpus.vocab_size, corpus.tokenizer_sha256, corpus.eos_id) == (None, None, None)
        prints.append(corpus.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_corpora_of_different_tokenizers_do_not_blend(tmp_path: Path) -> None:
    a, b = make_corpus(tmp_path / "a", 401), make_corpus(tmp_path / "b", 401, tokenizer="b" * 64)
    with pytest.raises(DataError, match="different tokenizers"):
        open_corpus([{"path": a}, {"path": b}], 10, 0)


def test_vocabulary_is_checked_against_the_model(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path / "a", 401), 10, 0)
    check_vocabulary(corpus, 1000, "a" * 64)
    check_vocabulary(corpus, 1024)
    for size in (999, 512, 32000):
        with pytest.raises(DataError, match=f"vocabulary of 1000, the model of {size}"):
            check_vocabulary(corpus, size)
    with pytest.raises(DataError, match="tokenizer aaaaaaaaaaaa, the model expects bbbbbbbbbbbb"):
        check_vocabulary(corpus, 1000, "b" * 64)


@pytest.mark.parametrize("spec", [[], {}, 3, [{"weight": 1}], [{"path": "x", "wieght": 1}], ["x"]])
def test_a_spec_of_another_form_is_refused(spec) -> None:
    with pytest.raises(DataError, match="expected|did you mean 'weight'"):
        open_corpus(spec, 10, 0)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    prefix = make_corpus(tmp_path / "a", 401)
    path = manifest_path(prefix)
    path.write_text(path.read_text().replace('"vocab_size": 1000', '"vocab_size": 2000'))
    with pytest.raises(DataError, match="was changed"):
        read_manifest(prefix)
    for text, told in (
        ("{}", "it has no checksums"), ("NaN", "it is no JSON object"), ("[]", "it is no JSON object"),
        ('{"documnets": 1}', "documnets is not known"), ("{", "Expecting"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=f"is not a manifest .*{told}"):
            read_manifest(prefix)


def test_manifest_of_another_run_is_refused(tmp_path: Path) -> None:
    a, b = make_corpus(tmp_path / "a", 401), make_corpus(tmp_path / "b", 301)
    manifest_path(a).write_bytes(manifest_path(b).read_bytes())
    with pytest.raises(DataError, match="different runs"):
        open_corpus(a, 10, 0)


def test_a_curriculum_changes_the_blend_and_goes_on_where_a_corpus_was(tmp_path: Path) -> None:
    a, b = make_corpus(tmp_path / "a", 1000), make_corpus(tmp_path / "b", 1000, first=1000, vocab_size=2000)
    manifest_path(b).unlink()
    spec = [
        {"until_tokens": 300, "blend": [{"path": a}]},
        {"until_tokens": 595, "blend": [{"path": a, "weight": 1}, {"path": b, "weight": 2}]},
        {"blend": [{"path": b}, {"path": a}]},
    ]
    corpus = open_corpus(spec, seq_length=10, seed=5)
    drawn = [corpus.sample(number).tolist() for number in range(100)]
    alone = [[TokenCorpus(path, 10, 5).sample(n).tolist() for n in range(100)] for path in (a, b)]
    from_a = [number for number, sample in enumerate(drawn) if sample in alone[0]]
    assert [drawn[n] for n in from_a] == alone[0][: len(from_a)]
    assert [sample for n, sample in enumerate(drawn) if n not in from_a] == alone[1][: 100 - len(from_a)]
    # 30 samples of the first stage, a third of 30, half of 40.
    assert (sum(n < 30 for n in from_a), sum(30 <= n < 60 for n in from_a), len(from_a)) == (30, 10, 60)
    for number in range(101):
        assert corpus.consumed(number) == {
            a: sum(n < number for n in from_a),
            b: sum(n not in from_a for n in range(number)),
        }


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"until_tokens": 100, "blend": [{}]}, {"blend": [{}]}], "a blend entry lacks 'path'"),
        ([{"blend": "P"}, {"blend": "P"}], "a stage lacks 'until_tokens'"),
        ([{"until_tokens": 100, "blend": "P"}, {"until_tokens": 50, "blend": "P"}], "unknown key 'until_tokens'"),
        ([{"until_tokens": 100, "blend": "P"}, {"until_tokens": 50, "blend": "P"}, {"blend": "P"}], "later than"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path: Path, stages: list[dict], said: str) -> None:
    path = make_corpus(tmp_path / "a", 401)
    spec = [{**stage, "blend": [{"path": path}] if stage["blend"] == "P" else stage["blend"]} for stage in stages]
    with pytest.raises(DataError, match=said):
        open_corpus(spec, 10, 0)


def test_ids_beyond_the_model_are_refused_when_they_are_drawn(tmp_path: Path) -> None:
    path = make_corpus(tmp_path / "a", 2001)
    manifest_path(path).unlink()
    corpus = open_corpus([{"path": path}], 10, 0)
    check_vocabulary(corpus, 990)
    with pytest.raises(DataError, match="expected 0 to 989; run .* corpus verify"):
        for number in range(corpus.num_samples):
            corpus.sample(number)


def test_a_loader_that_starts_within_a_stage_goes_on_as_if_it_had_come_there(tmp_path: Path) -> None:
    a, b = make_corpus(tmp_path / "a", 1000), make_corpus(tmp_path / "b", 1000, first=5)
    spec = [
        {"until_tokens": 100, "blend": [{"path": a}]},
        {"until_tokens": 295, "blend": [{"path": a, "weight": 1}, {"path": b, "weight": 2}]},
        {"blend": [{"path": b}]},
    ]
    batch, steps = 4, 20
    through = BatchLoader(open_corpus(spec, 10, 5), 2, 2, 0, 1)
    drawn = [torch.cat(through.batches(batch * step)) for step in range(steps)]
    corpus = open_corpus(spec, 10, 5)
    numbers = torch.cat(drawn)
    # Stages change at samples 10 and 30, the first in the middle of a batch.
    assert [corpus.stage(n) for n in (0, 9, 10, 29, 30, 79)] == [0, 0, 1, 1, 2, 2]
    assert all(numbers[n].tolist() == corpus.sample(n).tolist() for n in range(batch * steps))
    in_b = {tuple(TokenCorpus(b, 10, 5).sample(n)) for n in range(99)}
    from_b = [tuple(row) in in_b for row in numbers.tolist()]
    assert not any(from_b[:10]) and all(from_b[30:]) and sum(from_b[10:30]) in (13, 14)
    for start in (1, 4, 12):
        resumed = BatchLoader(open_corpus(spec, 10, 5), 1, 2, 0, 2), BatchLoader(open_corpus(spec, 10, 5), 1, 2, 1, 2)
        for step in range(start, steps):
            first, second = (loader.batches(batch * step) for loader in resumed)
            rows = [row for pair in zip(first, second, strict=True) for row in pair]
            assert torch.equal(torch.cat(rows), drawn[step])
        for loader in resumed:
            loader.close()
    through.close()


def test_the_end_of_document_token_comes_from_the_manifests_or_is_given(tmp_path: Path) -> None:
    named, silent = make_corpus(tmp_path / "a", 401), make_corpus(tmp_path / "b", 401)
    manifest_path(silent).unlink()
    known, unknown = open_corpus(named, 10, 0), open_corpus(silent, 10, 0)
    assert end_of_document([known, unknown], None) == end_of_document([known], 2) == end_of_document([unknown], 2) == 2
    with pytest.raises(DataError, match="corpora without a manifest do not name; set data.eos_id"):
        end_of_document([unknown], None)
    with pytest.raises(DataError, match="end with different tokens: 2, 7; data.eos_id is 7; preprocess"):
        end_of_document([known, unknown], 7)


def test_corpora_whose_documents_end_differently_make_no_blend(tmp_path: Path) -> None:
    a, b = make_corpus(tmp_path / "a", 401), make_corpus(tmp_path / "b", 401)
    manifest = read_manifest(b)
    assert manifest is not None
    manifest.eos_id = 3
    manifest.write(b)
    with pytest.raises(DataError, match=r"end with different tokens \(2 and 3\); preprocess them with one --eos-token"):
        open_corpus([{"path": a}, {"path": b}], 10, 0)
