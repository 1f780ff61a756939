"""A run's tokenizer as the files that transformers reads.

``transformers`` rebuilds a SentencePiece model by rules of its own, which give other ids for unigram models and
for text that begins with a space. So a ``tokenizer.json`` that follows the model is written beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizers import load_tokenizer
from pretrain.errors import DataError
from pretrain.files import sha256_of, write_synced

_SPACE = "\u2581"
_PROBES = (
    "one two",
    "  two  spaces, a\ttab\nand a line",
    "1234567890 x=f(y[0])\n\n",
    "caf\u00e9 \u4f60\u597d \U0001f9ea",
)


def export_tokenizer(path: Path, folder: Path, vocab_size: int) -> dict[str, int | None]:
    """Write the tokenizer at ``path`` into ``folder``; returns the ids of its special tokens for ``config.json``.

    Args:
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: it is missing, of another format, has more tokens than the model, or cannot be converted exactly.
    """
    size = load_tokenizer(str(path)).vocab_size
    if size > vocab_size:
        raise DataError(
            f"tokenizer {path} has {size} tokens, the model {vocab_size}: it is another model's; name the right one "
            "with --tokenizer, or export without one: --tokenizer none"
        )
    return _export_json(path, folder) if path.suffix == ".json" else _export_sentencepiece(path, folder)


def not_of_the_data(path: Path, data: dict[str, Any]) -> list[str]:
    """A note where the file at ``path`` is not the one that made the run's corpora, as far as these lie here.

    Args:
        data: that section of the run's settings.
    """
    own = sha256_of(path)
    for prefix in _corpora(data):
        with suppress(DataError, OSError):
            known = read_manifest(prefix)
            if known is not None and known.tokenizer_sha256 != own:
                made = f"{prefix} was made with {known.tokenizer_sha256[:12]}"
                return [f"tokenizer {path} (sha256 {own[:12]}) is not the run's: {made}"]
    return []


def _corpora(data: dict[str, Any]) -> Iterator[str]:
    """Prefixes in settings that anybody may have written."""
    stages = [stage for stage in data.get("curriculum") or () if isinstance(stage, dict)]
    for blend in (data.get("train"), data.get("validation"), *(stage.get("blend") for stage in stages)):
        for source in blend if isinstance(blend, list) else ():
            if isinstance(source, dict) and isinstance(source.get("path"), str):
                yield source["path"]


def _export_json(path: Path, folder: Path) -> dict[str, int | None]:
    import tokenizers

    shutil.copyfile(path, folder / "tokenizer.json")
    eos = load_tokenizer(str(path)).eos_id
    _write_config(folder, {"eos_token": str(tokenizers.Tokenizer.from_file(str(path)).id_to_token(eos))})
    return {"eos_token_id": eos}


def _export_sentencepiece(path: Path, folder: Path) -> dict[str, int | None]:
    import sentencepiece

    content = path.read_bytes()
    model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
    converted = convert(content)
    for text in (*_PROBES, _every_37th_piece(model)):
        if converted.encode(text, add_special_tokens=False).ids != model.encode(text):
            raise DataError(
                f"tokenizer {path} cannot be converted exactly (text {text[:40]!r} gives other ids); export without "
                "it: --tokenizer none"
            )
    shutil.copyfile(path, folder / "tokenizer.model")
    write_synced(folder / "tokenizer.json", converted.to_str())
    ids = {name: getattr(model, f"{name}_id")() for name in ("unk", "bos", "eos", "pad")}
    known = {name: number for name, number in ids.items() if number >= 0}
    _write_config(folder, {f"{name}_token": model.id_to_piece(number) for name, number in known.items()})
    return {f"{name}_token_id": known.get(name) for name in ("bos", "eos", "pad")}


def _every_37th_piece(model: Any) -> str:
    """Text of pieces from all over the vocabulary; without those that stand for bytes and control tokens."""
    numbers = range(0, model.get_piece_size(), 37)
    plain = (n for n in numbers if not (model.is_byte(n) or model.is_control(n) or model.is_unknown(n)))
    return "".join(model.id_to_piece(n) for n in plain).replace(_SPACE, " ")


def _write_config(folder: Path, tokens: dict[str, str]) -> None:
    """``tokenizer_config.json``. Training puts no token before a document, so neither does this."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    write_synced(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")


def convert(content: bytes) -> Any:
    """A ``tokenizers.Tokenizer`` that gives the ids of the SentencePiece model ``content``.

    Raises:
        DataError: it is neither a BPE nor a unigram model.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    kinds = proto.SentencePiece
    made = tokenizers.Tokenizer(_model(proto))
    made.normalizer = _normalizer(proto.normalizer_spec)
    symbols = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    if symbols:  # never split, and no space is put before what follows them: so they are no added tokens
        symbols.sort(key=len, reverse=True)
        pattern = "|".join(_escape(symbol) for symbol in symbols)
        made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(steps)
    special = [piece.piece for piece in proto.pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def _escape(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def _model(proto: Any) -> Any:
    from tokenizers import models

    spec, pieces = proto.trainer_spec, proto.pieces
    unknown = next(number for number, piece in enumerate(pieces) if piece.type == proto.SentencePiece.UNKNOWN)
    if spec.model_type == spec.UNIGRAM:
        vocabulary = [(piece.piece, piece.score) for piece in pieces]
        return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=spec.byte_fallback)
    if spec.model_type != spec.BPE:
        raise DataError("tokenizer is neither a BPE nor a unigram SentencePiece model; export with --tokenizer none")
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(pieces)},
        merges=_merges({piece.piece: piece.score for piece in pieces if piece.type == proto.SentencePiece.NORMAL}),
        unk_token=pieces[unknown].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
        ignore_merges=True,  # a whole word of the vocabulary is taken as it is; only so are user-defined symbols found
    )


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, best first: SentencePiece keeps scores, Hugging Face wants pairs."""
    found = []
    for piece, score in scores.items():
        pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        found += [(-score, left, right) for left, right in pairs if left in scores and right in scores]
    return [(left, right) for _, left, right in sorted(found, key=lambda item: item[0])]


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)
