"""The experiment's own text: made once, from the library that Python brings."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from pretrain.errors import DataError
from tools.ablate import text
from tools.ablate.text import prepare


def test_text_is_made_once_and_holds_a_validation_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = Path(sysconfig.get_path("stdlib"))
    for part in (".", "asyncio", "email"):
        (tmp_path / "lib" / part).mkdir(parents=True)
        for path in sorted((library / part).glob("*.py"))[:20]:
            shutil.copy(path, tmp_path / "lib" / part)
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    spec = {"folder": str(tmp_path / "made"), "vocab_size": 512}
    prepare(spec)
    read = json.loads((tmp_path / "made" / "python_train.manifest.json").read_text())["sources"]
    ours = [path for path in (tmp_path / "lib").rglob("*.py") if not path.name.startswith("_sysconfigdata")]
    assert len(read) == len(ours) < len([*(tmp_path / "lib").rglob("*.py")])
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert {"tokenizer.model", "python_train.idx", "python_validation.idx"} <= made.keys()
    prepare(spec)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()} == made


def test_a_tool_that_fails_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path / "empty"))
    with pytest.raises(DataError, match="tools.train_tokenizer could not make the experiment's text: ") as caught:
        prepare({"folder": str(tmp_path / "made"), "vocab_size": 512})
    assert "\n" not in str(caught.value)
