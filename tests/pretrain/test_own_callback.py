"""Callbacks named in the run file get every hook on every rank, in their place in the order of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.__main__ import main
from pretrain.callbacks.base import ORDER, OWN, Callback
from pretrain.callbacks.table import BUILT_IN
from pretrain.config import config_from_dict, load_config
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

HERE = "tests.pretrain.own_callbacks"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def job(corpus: str, output: Path, *callbacks: Any, **changes: Any) -> dict[str, Any]:
    return {**settings(corpus, output, **changes), "callbacks": list(callbacks)}


def test_every_hook_is_called_on_every_rank_and_its_state_comes_back(corpus: str, tmp_path: Path) -> None:
    diary = {"name": f"{HERE}:Diary", "options": {"folder": str(tmp_path), "every": 2}}
    common = {"parallel__zero_stage": 2, "train__steps": 6, "evaluation__interval": 5}
    stops = [job(corpus, tmp_path / "run", diary, **common, train__stop_at=stop) for stop in (4, 6)]
    plain = settings(corpus, tmp_path / "plain", **common)
    *_, resumed, without = run_ranks(train_all, 2, [*stops, plain])[0]
    assert resumed["losses"] == without["losses"], "who only looks on changes nothing"
    for rank in (0, 1):
        lines = (tmp_path / f"diary-{rank}.txt").read_text().splitlines()
        steps = [line for line in lines if line.startswith(("before_step", "before_update", "after_step"))]
        hooks = ("before_step", "before_update", "after_step")
        assert [line.split()[:2] for line in steps] == [
            [hook, str(step + (hook == "after_step"))] for step in range(6) for hook in hooks
        ]
        assert [line for line in lines if line not in steps] == [
            "on_start 0 seen 0", "on_end 4", "close", "on_start 4 seen 4", "on_end 6", "close",
        ]  # fmt: skip
        known = {line.split()[1]: line.partition("knows ")[2] for line in lines if line.startswith("after_step")}
        assert known["4"] == "grad_norm steps_skipped topology" and known["5"].endswith("validation_loss")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("seen_so_far") for record in records] == [None, 2.0, None, 4.0, None, 6.0]
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["callbacks"][f"{HERE}:Diary"] == {"seen": 6}
    assert state["config"]["callbacks"] == [diary]


def test_each_built_in_callback_has_its_place_by_its_own_name() -> None:
    assert set(BUILT_IN) == set(ORDER) - {OWN}
    assert {kind.name for kind in Callback.__subclasses__() if kind.__module__.startswith("pretrain.")} == set(BUILT_IN)
    order = list(ORDER)
    for first, then in (("evaluation", "topology"), ("topology", "stability"), ("sources", "checkpoint"),
                        (OWN, "checkpoint"), (OWN, "metrics"), ("metrics", "progress")):  # fmt: skip
        assert order.index(first) < order.index(then)


def test_the_short_form_is_a_name_and_an_override_replaces_the_list(corpus: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(job(corpus, tmp_path / "run", f"{HERE}:Twin")))
    (one,) = load_config(file).callbacks
    assert (one.name, one.options) == (f"{HERE}:Twin", {})
    (other,) = load_config(file, [f"callbacks=[{{name: '{HERE}:Diary', options: {{folder: x}}}}]"]).callbacks
    assert (other.name, other.options) == (f"{HERE}:Diary", {"folder": "x"})
    assert config_from_dict(load_config(file).to_dict()) == load_config(file)


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("diary", "callbacks[0].name is 'diary', expected package.module:Class; built-in ones have sections"),
        (f"{HERE}:Diry", "has no 'Diry' (did you mean 'Diary'?)"),
        ("tests.nowhere:Diary", "callbacks[0].name is 'tests.nowhere:Diary': module tests.nowhere cannot be imported"),
        (
            f"{HERE}:NoCallback",
            f"callbacks[0].name is '{HERE}:NoCallback', a class, expected a class derived",
        ),
        (f"{HERE}:Diary", f"callbacks[0].options do not fit {HERE}:Diary: missing a required argument: 'folder'"),
        ({"name": f"{HERE}:Diary", "options": {"foldr": "x"}}, f"do not fit {HERE}:Diary: missing a required argument"),
        ({"name": f"{HERE}:Twin", "every": 3}, "callbacks[0].every is not a known key; known keys: name, options"),
        ({"options": {}}, "callbacks[0].name is missing, it has no default"),
        (3, "callbacks[0] is 3 (int), expected a mapping of name, options"),
    ],
)
def test_what_cannot_be_is_one_line_at_a_dry_run(
    corpus: str, tmp_path: Path, callback: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(job(corpus, tmp_path / "run", callback)))
    assert main([str(file), "--dry-run"]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_names_that_are_there_twice_are_refused_at_the_start(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"1 names are there twice \(guard\), expected one each"):
        run_ranks(train_all, 1, [job(corpus, tmp_path / "run", f"{HERE}:Twin")])
