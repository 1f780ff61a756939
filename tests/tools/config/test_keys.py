"""docs/keys.md: every key of a run file, with its meaning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pretrain.changes import changes
from pretrain.config import load_config
from smet.config import SmetConfig
from tools.config.__main__ import main
from tools.config.keys import NAMED, all_keys, keys_in, meanings
from tools.config.page import page


def test_the_page_is_what_the_command_prints() -> None:
    renew = "python -m tools.config keys > docs/keys.md"
    assert Path("docs/keys.md").read_text(encoding="utf-8") == page() + "\n", f"out of date; {renew}"


def test_every_key_of_a_resolved_run_is_on_it_and_means_something() -> None:
    keys = {key.name: key for key in all_keys()}
    resolved = load_config("configs/quickstart.yaml").to_dict()
    sections = {name: part for name, part in resolved.items() if name not in ("deepspeed", "callbacks")}
    assert {f"{name}.{key}" for name, part in sections.items() for key in part} <= keys.keys()
    assert len(keys) >= 94
    assert [key.name for key in keys.values() if not key.meaning] == []
    assert NAMED.keys() <= keys.keys()


def test_a_key_without_a_meaning_is_seen() -> None:
    @dataclasses.dataclass
    class Section:
        told: int = 1
        """What it is."""
        untold: int = 2

    assert meanings(Section) == {"told": "What it is."}
    assert [key.meaning for key in keys_in(Section, "here")] == ["What it is.", ""]


def test_a_meaning_may_stand_in_the_class_that_it_is_derived_from() -> None:
    (family,) = [key for key in all_keys() if key.name == "model.family"]
    assert "built-in family" in family.meaning and family.choices == ("llama",) and family.own


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.steps", 99, "yes"),
        ("logging.interval", 3, "yes"),
        ("optimizer.lr", 1e-3, "in a branch"),
        ("sparsity.density", 0.5, "no"),
        ("model.rope_theta", 5e5, "no"),
        ("data.seq_length", 64, "no"),
    ],
)
def test_what_may_change_on_resume_is_what_the_program_says(key: str, value: float, expected: str) -> None:
    (found,) = [one for one in all_keys() if one.name == key]
    assert found.on_resume == expected
    plain, other = (load_config("configs/quickstart.yaml", more).to_dict() for more in ([], [f"{key}={value}"]))
    (change,) = [one for one in changes(plain, other) if one.key == key]
    assert (change.allowed, change.fits and not change.allowed) == (expected == "yes", expected == "in a branch")


def test_choices_are_those_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {key.name: key for key in all_keys()}
    assert keys["train.precision"].choices == ("bf16", "fp32")
    assert keys["sparsity.balance"].choices == ("auto", "always", "towards", "never")
    assert "granet" in keys["sparsity.method"].choices and keys["sparsity.growth"].own
    assert main(["keys", "--json"]) == 0
    assert capsys.readouterr().out.count('"meaning"') == len(keys) > len(dataclasses.fields(SmetConfig))
