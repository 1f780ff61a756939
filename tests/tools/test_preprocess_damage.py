"""A thousand damaged inputs: rejects or one clear error, never a traceback, a hang or a corrupt corpus."""

from __future__ import annotations

import gzip
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tools.texts import make_documents
from tools.corpus.verify import verify
from tools.preprocess import main

ROUNDS = 63
"""Times 16 kinds of damage: 1,008 inputs."""
LIMIT = 20_000
"""Of a document's bytes, so that an over-long one is cheap to make."""


def lines(random_: random.Random) -> list[bytes]:
    documents = make_documents(random_.randint(1, 12), seed=random_.randrange(10**6))
    return [json.dumps({"text": text}).encode() for text in documents]


def cut_line(random_: random.Random) -> bytes:
    made = lines(random_)
    which = random_.randrange(len(made))
    made[which] = made[which][: random_.randrange(len(made[which]))]
    return b"\n".join(made)


def cut_file(random_: random.Random) -> bytes:
    made = b"\n".join(lines(random_))
    return made[: random_.randrange(len(made))]


def invalid_utf8(random_: random.Random) -> bytes:
    made = bytearray(b"\n".join(lines(random_)))
    for _ in range(random_.randint(1, 5)):
        made[random_.randrange(len(made))] = random_.randint(128, 255)
    return bytes(made)


def nul_bytes(random_: random.Random) -> bytes:
    made = bytearray(b"\n".join(lines(random_)))
    for _ in range(random_.randint(1, 5)):
        made[random_.randrange(len(made))] = 0
    return bytes(made)


def any_bytes(random_: random.Random) -> bytes:
    return random_.randbytes(random_.randint(1, 5000))


def deep_nesting(random_: random.Random) -> bytes:
    opening = random_.choice([b"[", b'{"text":'])
    return b"\n".join([*lines(random_), opening * random_.randint(1000, 2400), *lines(random_)])


def huge_line(random_: random.Random) -> bytes:
    size = random_.randint(LIMIT - 20, 3 * LIMIT)
    body = random_.choice([b"x" * size, b'{"text": "' + b"y" * size + b'"}', b" " * size])
    return b"\n".join([*lines(random_), body, *lines(random_)])


def empty(random_: random.Random) -> bytes:
    return random_.choice([b"", b"\n", b"\n\n\n", b" ", b"\xef\xbb\xbf"])


def mixed_columns(random_: random.Random) -> bytes:
    values = [None, 1, 1.5, True, [], {}, "", "good text", "\ud800", ["text"], {"text": "x"}, 10**400]
    records = [{random_.choice(["text", "body", "Text"]): random_.choice(values)} for _ in range(12)]
    return b"\n".join(json.dumps(record).encode() for record in records)


def not_objects(random_: random.Random) -> bytes:
    return b"\n".join(random_.choice([b"1", b'"text"', b"[]", b"null", b"NaN", b"9" * 5000]) for _ in range(5))


def line_ends(random_: random.Random) -> bytes:
    return random_.choice([b"\r\n", b"\r", b"\x0b", b"\n\r\n"]).join(lines(random_))


def pretty_json(random_: random.Random) -> bytes:
    return json.dumps([{"text": text} for text in make_documents(3)], indent=2).encode()


def corrupt_gzip(random_: random.Random) -> bytes:
    made = bytearray(gzip.compress(b"\n".join(lines(random_) * 20)))
    kind = random_.randrange(3)
    if kind == 0:
        return bytes(made[: random_.randint(3, len(made) - 1)])
    if kind == 1:
        made[random_.randrange(2, len(made))] ^= 1 << random_.randrange(8)
        return bytes(made)
    return bytes(made) + random_.randbytes(50)


def corrupt_zstd(random_: random.Random) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(b"\n".join(lines(random_) * 20))
    made = bytearray(sink.getvalue().to_pybytes())
    if random_.random() < 0.5:
        return bytes(made[: random_.randint(5, len(made) - 1)])
    made[random_.randrange(4, len(made))] ^= 1 << random_.randrange(8)
    return bytes(made)


def _parquet(random_: random.Random) -> bytearray:
    columns = {"text": make_documents(20, seed=random_.randrange(10**6)), "id": list(range(20))}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=6)
    return bytearray(sink.getvalue().to_pybytes())


def corrupt_parquet(random_: random.Random) -> bytes:
    made = _parquet(random_)
    if random_.random() < 0.5:
        return bytes(made[: random_.randint(4, len(made) - 1)])
    for _ in range(random_.randint(1, 8)):
        made[random_.randrange(4, len(made))] ^= 1 << random_.randrange(8)
    return bytes(made)


def odd_parquet(random_: random.Random) -> bytes:
    bad = pa.array([b"good", b"\xff\xfe", None, b""], pa.binary())
    text = pa.StringArray.from_buffers(4, *bad.buffers()[1:], bad.buffers()[0])
    column = random_.choice([bad, text, pa.array([1, 2, 3, 4]), pa.array([["x"]] * 4), pa.nulls(4)])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({random_.choice(["text", "body"]): column}), sink)
    return sink.getvalue().to_pybytes()


DAMAGES: list[tuple[Callable[[random.Random], bytes], str]] = [
    (cut_line, "jsonl"), (cut_file, "jsonl"), (invalid_utf8, "jsonl"), (nul_bytes, "jsonl"), (any_bytes, "jsonl"),
    (deep_nesting, "jsonl"), (huge_line, "jsonl"), (empty, "jsonl"), (mixed_columns, "jsonl"), (not_objects, "jsonl"),
    (line_ends, "jsonl"), (pretty_json, "jsonl"), (corrupt_gzip, "jsonl.gz"), (corrupt_zstd, "jsonl.zst"),
    (corrupt_parquet, "parquet"), (odd_parquet, "parquet"),
]  # fmt: skip


def hang(signum: int, frame: object) -> None:
    raise TimeoutError("an input took more than 30 seconds")


@pytest.mark.parametrize(("damage", "suffix"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damaged_inputs(tmp_path: Path, model: str, capsys, damage, suffix: str) -> None:
    signal.signal(signal.SIGALRM, hang)
    ends = {0: 0, 2: 0}
    for number in range(ROUNDS):
        random_ = random.Random(f"{damage.__name__} {number}")
        path, prefix = tmp_path / f"in{number}.{suffix}", tmp_path / f"c{number}"
        path.write_bytes(damage(random_))
        args = ["--input", str(path), "--tokenizer", model, "--output", str(prefix), "--workers", "1", "--json"]
        args += ["--max-document-bytes", str(LIMIT)]
        if suffix == "jsonl" and random_.random() < 0.3:
            # As one document, a file with a huge line would be too long as a whole.
            modes = ["line"] if damage is huge_line else ["file", "line"]
            args += ["--format", "text", "--text-mode", random_.choice(modes)]
        signal.alarm(30)
        code = main(args)
        signal.alarm(0)
        out, err = capsys.readouterr()
        ends[code] += 1
        if code == 0:
            summary = json.loads(out)
            assert verify(str(prefix), None, None) == []
            rejects = tmp_path / f"c{number}.rejects.jsonl"
            told = rejects.read_text().splitlines() if rejects.exists() else []
            assert len(told) == summary["rejected"]
            assert summary["records"] == summary["documents"] + summary["empty"] + summary["rejected"]
        else:
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert code == 2 and len(errors) == 1
            assert not list(tmp_path.glob(f"c{number}.bin"))
    assert sum(ends.values()) == ROUNDS
    if damage in (deep_nesting, huge_line):
        # The good lines around the bad one are kept.
        assert ends[2] == 0
