"""Whatever YAML a run file, a base or an override holds, it is what it looks like, or one clear line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.config.yaml_text import parse_yaml
from pretrain.errors import ConfigError
from tests.pretrain.config.test_load import RUN, load, problems_of, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000), ("0", 0), ("-7", -7), ("0x10", 16), ("1e3", 1000.0), ("5E-1", 0.5), ("1_000.5", 1000.5),
        ("2026-11-27", "2026-11-27"), ("1.2.3", "1.2.3"), ("true", True), ("yes", True), ("off", False), ("~", None),
        ("'0123'", "0123"), ("e5", "e5"), ("1e", "1e"), (".5", 0.5), ("[1, a]", [1, "a"]),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse_yaml("{on: 1, 3: 2, 1e3: 3, 2026-01-01: 4}", "here") == {"on": 1, "3": 2, "1e3": 3, "2026-01-01": 4}
    assert parse_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", "here")["d"] == {"b": 1, "c": 3}


BAD = {
    "template": ("lr: {{ LR }}", "a mapping where a key was expected; if this is a template's {{ ... }}, it was not"),
    "template in a list": ("a: [{{ A }}, {{ B }}]", "a mapping where a key was expected"),
    "list as key": ("? [a, b]\n: 3", "a list where a key was expected"),
    "octal": ("seed: 0123", "0123 may be octal (YAML 1.1) or decimal; write 123 if it is decimal, or quote it"),
    "octal with a nine": ("seed: 0129", "0129 may be octal"),
    "time of day": ("limit: 12:30", "12:30 is a number to base 60 in YAML 1.1; write it out, or quote it"),
    "time with seconds": ("limit: 24:00:00", "24:00:00 is a number to base 60"),
    "binary": ("seed: 0b11", "0b11 is a binary number"),
    "key without a value": ("train:\n  steps:\n  seed: 1", "line 2 is no valid YAML: key 'steps' has no value; write"),
    "value without a key": ("{'': 3}", "a value without a key"),
    "twice": ("a: {b: 1, b: 2}", "key 'b' twice"),
    "itself": ("a: &a [*a]", "an anchor that holds itself"),
    "bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "more than 100,000 values",
    ),
    "deep": ("a: " + "[" * 40 + "]" * 40, "nested more than 32 levels deep"),
    "very deep": ("a: " + "[" * 20_000, "nested too deeply"),
    "python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "control character": ("a: \x07", "special characters are not allowed"),
    "tab": ("a:\n\tb: 1", "cannot start any token"),
    "long number": ("seed: " + "9" * 5000, "Exceeds the limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_surprise_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, said = BAD[name]
    for path in (write(tmp_path, "bad.yaml", text), write(tmp_path, "run.yaml", "base: bad.yaml\n")):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert said in str(caught.value) and "\n" not in str(caught.value)
        assert "bad.yaml" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr={{ LR }}", "override 'optimizer.lr={{ LR }}' line 1 is no valid YAML: a mapping where a key"),
        ("train.steps=", "override 'train.steps=' has no value; write train.steps=null to leave it at its default"),
        ("sparsity.density= ", "override 'sparsity.density= ' has no value"),
        ("train.seed=010", "override 'train.seed=010' line 1 is no valid YAML: 010 may be octal"),
        ("operation.time_limit=1:30", "override 'operation.time_limit=1:30' line 1 is no valid YAML: 1:30 is a number"),
        ("train.output_dir=no", "train.output_dir is false, expected text; YAML reads false, no and off alike, quote"),
        ("optimizer.schedule=on", "optimizer.schedule is true, expected text; YAML reads true, yes and on alike"),
        ("data.eos_id=None", "data.eos_id is 'None' (str), expected a whole number; nothing is null in YAML"),
        (
            "train.seed=1e30",
            "train.seed is 1000000000000000019884624838656 (int), expected a whole number that fits 64",
        ),
        ("train.seed=0x" + "f" * 5000, "train.seed is a number of 20000 bits, expected a whole number that fits 64"),
        ("optimizer.lr=0x" + "f" * 5000, "optimizer.lr is a number of 20000 bits, expected a finite number that fits"),
        ("train.steps={a: 1}", "train.steps is {'a': 1} (dict), expected a whole number"),
        ("train.steps=[1]", "train.steps is [1] (list), expected a whole number"),
        ("optimizer.lr=1,5", "optimizer.lr is '1,5' (str), expected a finite number"),
        ("train.output_dir='a\0b'".replace("'", '"').replace("\0", "\\0"), "train.output_dir is 'a\\x00b', expected a"),
        ("train.3=4", "train.3 is not a known key"),
        (
            "data.train=[{path:data/a}]",
            "data.train[0].path:data/a is not a known key (did you mean 'path'? its colon needs a space behind it)",
        ),
        ("data.train={{ DATA }}", "override 'data.train={{ DATA }}' line 1 is no valid YAML"),
    ],
)
def test_an_override_of_another_shape_is_one_line(tmp_path: Path, override: str, expected: str) -> None:
    found = problems_of(tmp_path, override)
    assert len(found) == 1 and found[0].startswith(expected), found


def test_an_override_that_the_shell_took_apart_and_a_folder_say_what_to_do(tmp_path: Path) -> None:
    first, second = problems_of(tmp_path, "sparsity.block=[1,", "1]")
    assert first.endswith("; quote an override that has spaces in it") and second.startswith("override '1]' is malf")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run")
    assert caught.value.problems == [
        f"{tmp_path}/run is a folder, expected a YAML run file; the run in it has {tmp_path}/run/config.yaml"
    ]


LOOKALIKES = ("2026-11-27", "1e-3", "0129", "1:30", "0b1", "yes", "1_0", "0x1", "null", "{{a}}")


@pytest.mark.parametrize("name", LOOKALIKES)
def test_text_that_looks_like_something_else_is_saved_as_text(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, f"train.output_dir='{name}'")
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_date_names_a_run_folder(tmp_path: Path) -> None:
    assert load(tmp_path, "train.output_dir=2026-11-27").train.output_dir == "2026-11-27"


SHAPES = (
    "null", "~", "[]", "{}", "[[1]]", "{a: {b: c}}", "[a, 1, null]", "-1", "1e400", "-.inf", ".nan", "''", "' '", "yes",
    "'1'", "2026-01-01", "{path: 3}", "[{path: [a]}]", "[{path: a, weight: b}]", "{{x}}", "1:30", "007", "!!set {a, b}",
    "!!binary aGk=", "!!omap [a: 1]", "!!str 3", "!!int x", "&a [*a]", "*a", "'~nobody/x'", "$HOME/x", "\"\\0\"", "%",
)  # fmt: skip


def test_no_shape_under_any_key_is_a_traceback(tmp_path: Path) -> None:
    """A seeded sample of shapes in every place of a run file: settings, or lines of one line each."""
    draw = random.Random(0)
    keys = [(section, key) for section, keys in RUN.items() for key in keys]
    keys += [("sparsity", key) for key in ("density", "block", "include", "method", "prune_schedule", "seed")]
    keys += [
        ("data", "curriculum"),
        ("data", "tokenizer"),
        ("deepspeed", "zero_optimization"),
        ("checkpoint", "resume"),
        ("optimizer", "name"),
        ("optimizer", "options"),
        ("sparsity", "compute"),
        ("callbacks", "name"),
    ]
    refused = 0
    for _ in range(400):
        section, key = draw.choice(keys)
        dotted = draw.choice([f"{section}.{key}", section, key, f"{section}.{key}.{key}"])
        try:
            load(tmp_path, f"{dotted}={draw.choice(SHAPES)}", *([] if draw.random() < 0.5 else ["train.seed=1"]))
        except ConfigError as error:
            refused += 1
            assert all("\n" not in problem and problem.strip() for problem in error.problems)
    assert refused > 200
