"""Text is text: a special token quoted in a document gives its letters, never its id.

A tokenizer's own file says otherwise in several ways: Hugging Face's looks for special tokens in the text ahead of
everything, a word-level or unigram model has them among its words, and SentencePiece finds user-defined symbols. So
documents are encoded by a copy in which those tokens have names that no text contains.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pretrain.outside import parse_json


def plain_sentencepiece(content: bytes, eos_id: int) -> bytes:
    """A SentencePiece model whose end-of-document token is a control symbol, which text never gives."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    if proto.pieces[eos_id].type == proto.SentencePiece.CONTROL:
        return content
    proto.pieces[eos_id].type = proto.SentencePiece.CONTROL
    made: bytes = proto.SerializeToString()
    return made


def plain_json(content: str, end: str) -> str:
    """A ``tokenizer.json`` that gives neither its special tokens nor ``end`` for any text, and all else as before.

    The token for unknown words keeps its name: text does give that.
    """
    given = parse_json(content)
    model, added = given["model"], given.get("added_tokens") or []
    special = {token["content"] for token in added if token.get("special")} - {_unknown(model)} | {end}
    prefix = "\U0010fffe" + hashlib.sha256(content.encode()).hexdigest()[:16]
    names = {token: f"{prefix}{number}" for number, token in enumerate(sorted(special))}
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(vocabulary := model.get("vocab"), dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif vocabulary:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _concerns(merge, model, special)]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    # What it adds to a text, it adds by these names.
    given["post_processor"] = None
    return json.dumps(given)


def _unknown(model: dict[str, Any]) -> str | None:
    if isinstance(model.get("unk_id"), int):
        token: str = model["vocab"][model["unk_id"]][0]
        return token
    return model.get("unk_token")


def _concerns(merge: Any, model: dict[str, Any], special: set[str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    joined = left + right.removeprefix(model.get("continuing_subword_prefix") or "")
    return not special.isdisjoint((left, right, joined))
