"""Run files: merging, overrides, and every problem told at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config import RunConfig, Source, Stage, config_from_dict, load_config
from pretrain.config.once import note_once
from pretrain.errors import ConfigError

RUN: dict[str, Any] = {
    "model": {
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "data": {"train": "data/corpus", "seq_length": 256},
    "optimizer": {"lr": 0.003},
    "train": {"steps": 100, "global_batch_size": 16, "output_dir": "runs/test"},
}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def load(folder: Path, *overrides: str) -> RunConfig:
    return load_config(write(folder, "run.yaml", RUN), overrides)


def problems_of(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def test_defaults_follow_the_shape(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.model.head_dim == 32
    assert config.model.num_key_value_heads == 4
    assert config.data.train == (Source(path="data/corpus", weight=1.0),)
    assert config.data.validation == ()


def test_a_later_layer_wins_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path, "models/shape.yaml", {"model": RUN["model"]})
    write(tmp_path, "common.yaml", {"base": "models/shape.yaml", "optimizer": {"lr": 0.5, "beta2": 0.9}})
    write(tmp_path, "more.yaml", {"optimizer": {"beta2": 0.95}})
    run = {key: value for key, value in RUN.items() if key != "model"}
    path = write(tmp_path, "run.yaml", {"base": ["common.yaml", "more.yaml"], **run})
    config = load_config(path, ["model.num_hidden_layers=5"])
    assert (config.optimizer.lr, config.optimizer.beta2) == (0.003, 0.95)
    assert (config.model.num_hidden_layers, config.model.hidden_size) == (5, 128)


def test_a_cycle_of_bases_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"base": "b.yaml"})
    write(tmp_path, "b.yaml", {"base": "a.yaml"})
    with pytest.raises(ConfigError, match=r"cycle.*a\.yaml -> b\.yaml -> a\.yaml"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", ".1e-2", "1.0e-3", "0.001", "1.e-3"])
def test_every_way_to_write_a_thousandth(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"optimizer.lr={text}").optimizer.lr == 1e-3
    path = write(tmp_path, "lr.yaml", f"base: run.yaml\noptimizer: {{lr: {text}}}\n")
    assert load_config(path).optimizer.lr == 1e-3


def test_overrides_take_yaml_values(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "train.steps=1e4",
        "sparsity.block=[1, 16]",
        "data.train=[{path: a, weight: 3}, {path: b}]",
        "deepspeed.zero_optimization.overlap_comm=true",
        "train.activation_checkpointing=true",
        "model.head_dim=null",
        "train.output_dir=runs/a=b",
    )
    assert config.train.steps == 10000 and isinstance(config.train.steps, int)
    assert config.sparsity.block == (1, 16)
    assert config.data.train == (Source(path="a", weight=3.0), Source(path="b"))
    assert (config.data.curriculum, config.data.reset_attention, config.data.eos_id) == ((), False, None)
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    assert config.train.activation_checkpointing is True
    assert config.model.head_dim == 32
    assert config.train.output_dir == "runs/a=b"


def test_the_resolved_settings_load_back_equal(tmp_path: Path) -> None:
    config = load(
        tmp_path, "sparsity.method=rigl", "optimizer.eps=1e-15", "data.validation=v",
        "deepspeed.expert_parallel.b=[1, {c: 2.5}]",
    )  # fmt: skip
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert config_from_dict(config.to_dict()) == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "saved.yaml"]


CURRICULUM = "data.curriculum=[{until_tokens: 5e3, blend: a}, {blend: [{path: a}, {path: b, weight: 2}]}]"


def test_a_curriculum_is_stages_of_blends(tmp_path: Path) -> None:
    config = load(tmp_path, CURRICULUM, "data.reset_attention=true")
    first, last = config.data.curriculum
    assert first == Stage(until_tokens=5000, blend=(Source(path="a"),))
    assert last == Stage(until_tokens=None, blend=(Source(path="a"), Source(path="b", weight=2.0)))
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    back = load_config(tmp_path / "saved.yaml", ["data.train=c"])
    assert (back.data.train, back.data.curriculum) == ((Source(path="c"),), ())


def test_every_problem_of_a_curriculum_is_told_at_once(tmp_path: Path) -> None:
    stages = (
        "{untl_tokens: 9, blend: a}, {until_tokens: many, blend: [{path: a, wieght: 1}]},"
        " {until_tokens: 600, blend: []}, {until_tokens: 700, blend: [{path: a, weight: -1}]}, {until_tokens: 800},"
        " {until_tokens: 900, blend: a}"
    )
    found = problems_of(tmp_path, f"data.curriculum=[{stages}]")
    for expected in (
        "data.curriculum[0].untl_tokens is not a known key (did you mean 'until_tokens'?)",
        "data.curriculum[1].until_tokens is 'many' (str), expected a whole number",
        "data.curriculum[1].blend[0].wieght is not a known key (did you mean 'weight'?)",
        "data.curriculum[4].blend is missing, it has no default",
        "data.curriculum[2].blend is empty, expected a prefix or a list of {path, weight}",
        "data.curriculum[3].blend[0].weight is -1.0, expected a positive number",
        "data.curriculum[5].until_tokens is 900, expected none: the last stage goes on until the run ends",
    ):
        assert found.count(expected) == 1 and len(found) == len(set(found)), found
    assert not any(problem.startswith("data.curriculum[0].until_tokens") for problem in found), "it was only mistyped"
    sound = stages.replace("untl_tokens", "until_tokens").replace("many", "500").replace("wieght", "weight")
    both = f"train: a, curriculum: [{sound.replace('{until_tokens: 800}', '{blend: a}')}]"
    found = problems_of(tmp_path, f"data={{{both}}}")
    assert found == [
        "data.train and data.curriculum are both given, expected one of them; set the other to null",
        "data.curriculum[2].blend is empty, expected a prefix or a list of {path, weight}",
        "data.curriculum[3].blend[0].weight is -1.0, expected a positive number",
        "data.curriculum[3].until_tokens is 700, expected more than 768, where the stage before it ends",
        "data.curriculum[4].until_tokens is missing: every stage but the last needs the token at which it ends",
        "data.curriculum[5].until_tokens is 900, expected none: the last stage goes on until the run ends",
    ], found


def test_another_formula_leaves_out_the_options_of_the_one_below_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "below.yaml"
    load(tmp_path, "optimizer.beta2=0.9375", "optimizer.eps=1e-8").save(path)
    lion = load_config(path, ["optimizer.name=lion", "optimizer.options={betas: [0.9, 0.98]}"])
    assert lion == load(tmp_path, "optimizer.name=lion", "optimizer.options={betas: [0.9, 0.98]}")
    said = "note: optimizer.beta2 0.9375 is left out: an option of adamw, and optimizer.name is lion now"
    rate = "note: optimizer.lr 0.003 is that of adamw, and optimizer.name is lion now, whose rate may be quite another"
    assert [record.getMessage() for record in caplog.records] == [said, f"{rate}; set optimizer.lr beside it"]
    assert load_config(path, ["optimizer.name=adamw", "optimizer.lr=1"]).optimizer.beta2 == 0.9375
    assert load_config(path, ["optimizer.name=adamw_8bit"]).optimizer.beta2 == 0.9375, "which reads it too"
    lion.save(path)
    for back in ("adamw", "null"):  # which is the default
        assert load_config(path, [f"optimizer.name={back}"]).optimizer.options == {}
    for given in (["optimizer.beta2=0.5", "optimizer.name=lion"], ["optimizer.name=lion", "optimizer.beta2=0.5"]):
        with pytest.raises(ConfigError, match=r"optimizer.beta2 is 0.5, which only adamw and adamw_8bit read"):
            load_config(path, given)  # one start says both: neither is below the other


@pytest.mark.parametrize(
    ("base", "file", "overrides", "told"),
    [
        ({"lr": 0.5}, {}, ["optimizer.name=lion"], "optimizer.lr 0.5 is that of adamw, and optimizer.name is lion now"),
        ({"lr": 0.5}, {"name": "lion"}, [], "optimizer.lr 0.5 is that of adamw, and optimizer.name is lion now"),
        ({"lr": 0.5, "name": "lion"}, {}, ["optimizer.name=null"], "optimizer.lr 0.5 is that of lion, and optimizer"),
        ({"lr": 0.5}, {"name": "lion"}, ["optimizer.lr=0.1"], None),  # given at last, whoever named the formula
        ({"lr": 0.5}, {}, ["optimizer.lr=0.5", "optimizer.name=lion"], None),
        ({"lr": 0.5}, {"name": "lion"}, ["optimizer.name=adamw"], None),
        ({"lr": 0.5}, {}, ["optimizer.name=adamw_8bit"], None),
    ],
)
def test_a_rate_that_was_given_for_another_formula_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, base: dict[str, Any], file: dict[str, Any], overrides: list[str],
    told: str | None,
) -> None:  # fmt: skip
    note_once.cache_clear()
    caplog.set_level(logging.INFO)
    write(tmp_path, "base.yaml", {**RUN, "optimizer": base})
    path = write(tmp_path, "file.yaml", {"base": "base.yaml", "optimizer": file})
    if "adamw_8bit" in str(overrides):
        overrides = [*overrides, "optimizer.beta2=0.95"]
    load_config(path, overrides)
    said = [record.getMessage() for record in caplog.records if "optimizer.lr" in record.getMessage()]
    assert len(said) == (told is not None) and all(str(told) in text for text in said)


def test_a_preset_yields_to_keys_given_beside_it_and_outdoes_those_below(tmp_path: Path) -> None:
    write(tmp_path, "run.yaml", RUN)
    path = write(
        tmp_path,
        "low.yaml",
        {"base": "run.yaml", "sparsity": {"density": 0.1, "warmup_steps": 40, "update_interval": 7}},
    )
    naive = load_config(path, ["sparsity.method=set"]).sparsity
    assert (naive.density, naive.update_interval, naive.warmup_steps, naive.lr_exponent) == (0.1, 7, 0, 0.0)
    dense = load_config(path, ["sparsity.method=dense"]).sparsity
    assert (dense.density, dense.update_interval) == (1.0, 0)
    assert load_config(path, ["sparsity.method=set", "sparsity.warmup_steps=9"]).sparsity.warmup_steps == 9


def test_a_method_named_above_a_resolved_file_undoes_the_preset_written_out_there(tmp_path: Path) -> None:
    load(tmp_path, "sparsity.method=set", "sparsity.density=0.1").save(tmp_path / "set.yaml")
    smet = load_config(tmp_path / "set.yaml", ["sparsity.method=smet"])
    assert smet == load(tmp_path, "sparsity.method=smet", "sparsity.density=0.1")
    assert smet.sparsity.bias_correction == "local"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.hiden_size=3", "model.hiden_size is not a known key (did you mean 'hidden_size'?)"),
        ("modle.vocab_size=3", "modle is not a known section (did you mean 'model'?)"),
        ("steps=3", "steps is not a known section (did you mean 'train.steps'?)"),
        ("sparsity.densty=0.5", "sparsity.densty is not a known key (did you mean 'density'?)"),
        ("data.train=[{path: a, wight: 1}]", "data.train[0].wight is not a known key (did you mean 'weight'?)"),
        ("train.steps=many", "train.steps is 'many' (str), expected a whole number"),
        ("train.steps=1.5", "train.steps is 1.5 (float), expected a whole number"),
        ("train.steps=true", "train.steps is true, expected a whole number"),
        ("optimizer.lr=.inf", "optimizer.lr is inf (float), expected a finite number"),
        ("optimizer.lr=true", "optimizer.lr is true, expected a finite number"),
        ("parallel.sequence=1", "parallel.sequence is 1 (int), expected true or false"),
        ("train.output_dir=7", "train.output_dir is 7 (int), expected text; quote it to make it text"),
        ("sparsity.block=4", "sparsity.block is 4 (int), expected a list of 2 values, each a whole number"),
        ("sparsity.method=[a]", "sparsity.method is ['a'] (list), expected text"),
        ("sparsity.method=smit", "sparsity.method is 'smit', expected one of"),
        ("data.train=3", "data.train is 3 (int), expected a list of values, each a mapping of path, weight"),
        ("data.train=null", "data.train is empty, expected a prefix or a list of {path, weight} (or data.curriculum)"),
        ("data.train=[]", "data.train is empty"),
        ("data.train={}", "data.train is {} (dict), expected a list"),
        ("data.reset_atention=true", "data.reset_atention is not a known key (did you mean 'reset_attention'?)"),
        ("data.reset_attention=1", "data.reset_attention is 1 (int), expected true or false"),
        ("data.eos_id=-1", "data.eos_id is -1, expected 0 or more"),
        (
            "data.curriculum=c",
            "data.curriculum is 'c' (str), expected a list of values, each a mapping of until",
        ),
        ("model=3", "model is 3 (int), expected a mapping of keys"),
        ("deepspeed=[1]", "deepspeed is [1] (list), expected a mapping of keys"),
        ("train.precision=bf15", "train.precision is 'bf15', expected one of bf16, fp32 (did you mean 'bf16'?)"),
        ("no equals sign", "override 'no equals sign' is malformed, expected section.key=value"),
        ("train..steps=1", "override 'train..steps=1' is malformed"),
        ("train.steps=[1", "override 'train.steps=[1' line 1 is no valid YAML"),
    ],
)
def test_one_problem_is_told_once_with_its_remedy(tmp_path: Path, override: str, expected: str) -> None:
    found = problems_of(tmp_path, override)
    assert len(found) == 1 or override.startswith("model=")
    assert found[0].startswith(expected)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        "model.num_attention_heads=5",
        "data.seq_length=none",
        "data.seed=-1",
        "optimizer.lr=0",
        "optimizer.momentum=0.9",
        "train.precision=fp16",
        "train.steps=null",
        "parallel.zero_stage=4",
        "parallel.pipeline=3",
        "sparsity.density=1.5",
    )
    names = {text.split(" ")[0] for text in found}
    assert names == {
        "model.hidden_size",
        "data.seq_length",
        "data.seed",
        "optimizer.lr",
        "optimizer.momentum",
        "train.precision",
        "train.steps",
        "parallel.zero_stage",
        "parallel.pipeline",
        "sparsity.density",
    }
    assert len(found) == len(names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  [1", "line 2 is no valid YAML"),
        ("train: {}\ntrain: {}\n", "line 2 is no valid YAML: key 'train' twice"),
        ("- a\n", "holds list, expected a mapping of sections"),
        ("", "holds nothing, expected a mapping of sections"),
        ("base: 3\n", "has base [3], expected a path or a list of paths"),
        ("a: *x\n", "line 1 is no valid YAML"),
        ("base: none.yaml\n", "none.yaml does not exist"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "broken.yaml", text))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match="loop.yaml"):
        load_config(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="loop.yaml"):
        load_config(write(tmp_path, "run.yaml", "base: loop.yaml\n"))


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "quickstart.yaml", RUN)
    with pytest.raises(ConfigError, match=r"quickstat\.yaml does not exist.*did you mean 'quickstart\.yaml'"):
        load_config(tmp_path / "quickstat.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a YAML run file"):
        load_config(tmp_path)
