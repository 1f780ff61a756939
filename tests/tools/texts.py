"""Documents for the tools' tests: many scripts, line ends and odd characters, from a fixed generator."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_TEXT = (
    "the of sparse weight grows where a gradient is large and dies where it is small def return import self None "
    "caf\u00e9 na\u00efve \u4f60\u597d \u043c\u0438\u0440 \U0001f600 x = 1 + 2 { } [ ] 0 123 nul\x00byte tab|here"
)
_WORDS = [word.replace("|", "\t") for word in _TEXT.split()]


def make_documents(count: int, words: int = 40, seed: int = 0) -> list[str]:
    """``count`` documents of one to ``words`` words."""
    random_ = random.Random(seed)
    documents = []
    for _ in range(count):
        picked = [random_.choice(_WORDS) for _ in range(random_.randint(1, words))]
        documents.append("".join(word + random_.choice((" ", " ", " ", "\n", "  ")) for word in picked).strip())
    return documents


DOCUMENTS = make_documents(60)


def write_jsonl(path: Path, documents: Sequence[str]) -> Path:
    """One JSON object per line, with another column beside the text."""
    lines = (json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) + "\n" for n, t in enumerate(documents))
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path
