"""Settings that do not fit each other, and batch arithmetic."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import RunConfig, config_from_dict
from pretrain.config.names import in_run_file
from pretrain.config.passed_inside import INSIDE, VALUES
from pretrain.config.passed_on import DEEPSPEED_KEYS, INSTEAD, ZERO_INSTEAD, still_known, summed_in
from pretrain.config.run import NO_DATACLASS
from pretrain.errors import ConfigError
from pretrain.summary import numbers
from smet.config import SmetConfig


def make(**sections: dict[str, Any]) -> RunConfig:
    run: dict[str, dict[str, Any]] = {
        "model": {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
        "data": {"train": "data/corpus", "seq_length": 256},
        "optimizer": {"lr": 0.003},
        "train": {"steps": 100, "global_batch_size": 16, "output_dir": "runs/test"},
    }
    for name, keys in sections.items():
        run[name] = {**run.get(name, {}), **keys}
    return config_from_dict(run)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"num_attention_heads": 3}}, "model.hidden_size is 128 with 3 heads, expected a multiple"),
        (
            {"model": {"hidden_size": 126, "head_dim": 32}},
            "a multiple of num_attention_heads (124 or 128), as",
        ),
        (
            {"model": {"initializer_range": 1.5}},
            "model.initializer_range is 1.5, expected at most 1, as transformers",
        ),
        ({"model": {"num_hidden_layers": 10**9}}, "model.num_hidden_layers is 1000000000, expected at most 65,536"),
        ({"model": {"num_key_value_heads": 3}}, "expected a divisor of num_attention_heads 4 (1, 2, 4)"),
        ({"model": {"head_dim": 33}}, "model.head_dim is 33, expected an even size"),
        ({"model": {"hidden_act": "gelu"}}, "model.hidden_act is 'gelu', expected one of silu"),
        ({"model": {"mlp_bias": True}}, "model.mlp_bias is true, expected false"),
        ({"data": {"seq_length": 257}}, "data.seq_length is 257, expected at most model.max_position_embeddings 256"),
        ({"data": {"train": [{"path": "a", "weight": 0}]}}, "data.train[0].weight is 0.0, expected a positive number"),
        (
            {"data": {"train": [{"path": "a/b", "weight": 2}, {"path": "c"}, {"path": "a//b"}]}},
            "data.train has a/b 2 times, expected each corpus once; give it the sum of the weights",
        ),
        (
            {"data": {"train": [], "curriculum": [{"blend": [{"path": "a"}, {"path": "a"}]}]}},
            "data.curriculum[0].blend has a 2 times, expected each corpus once",
        ),
        ({"data": {"eos_id": 512}}, "data.eos_id is 512, expected a token id below model.vocab_size 512"),
        ({"optimizer": {"warmup_steps": 101}}, "optimizer.warmup_steps is 101, expected at most train.steps 100"),
        (
            {"operation": {"time_limit": 1}},
            "operation.time_limit is 1 minutes with time_margin 120 seconds, expected more than the margin",
        ),
        ({"evaluation": {"interval": 10}}, "evaluation.interval is 10 without data.validation"),
        ({"parallel": {"zero_stage": 0}}, "parallel.zero_stage is 0, expected 1, 2 or 3: without a partition"),
        ({"parallel": {"zero_stage": 4}}, "parallel.zero_stage is 4, expected 1, 2 or 3: ZeRO ends at stage 3"),
        ({"parallel": {"zero_stage": 3, "pipeline": 2}}, "with zero_stage 3, expected zero_stage 1: a pipeline sums"),
        ({"parallel": {"zero_stage": 1, "pipeline": 5}}, "expected at most model.num_hidden_layers 4"),
        ({"parallel": {"sequence": True}}, "parallel.sequence is true with tensor 1"),
        ({"parallel": {"tensor": 8}}, "model.num_attention_heads is 4, expected a multiple of parallel.tensor 8"),
        ({"deepspeed": {"fp16": {}}}, "deepspeed.fp16 is derived, expected no such key here; set train.precision"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "set parallel.zero_stage"),
        ({"deepspeed": {"comms_loger": {}}}, "is not a known key of DeepSpeed (did you mean 'comms_logger'?)"),
        (
            {"deepspeed": {"activation_checkpointing": {"partition_activations": True}}},
            "decides nothing here, expected no such key here; set train.activation_checkpointing",
        ),
        (
            {"deepspeed": {"managed_gradient_accumulation": False}},
            "would make a step of each micro-batch, expected no such key here; steps are of train.global_batch_size",
        ),
        (
            {"deepspeed": {"torch_autocast": {"enabled": True}}},
            "deepspeed.torch_autocast would compute in other numbers than the weights have, expected no such key here;"
            " set train.precision",
        ),
        (
            {"deepspeed": {"data_types": {"param_dtype": "fp32"}}},
            "deepspeed.data_types.param_dtype is derived, expected no such key here; set train.precision",
        ),
        (
            {"deepspeed": {"data_types": {"grad_accum_dtype": "fp16"}}},
            "deepspeed.data_types.grad_accum_dtype is 'fp16', expected fp32, or no such key",
        ),
        (
            {"deepspeed": {"data_types": {"grad_accum_dtype": "bf16"}}, "train": {"precision": "fp32"}},
            "deepspeed.data_types.grad_accum_dtype is 'bf16', expected fp32, or no such key",
        ),
        (
            {"deepspeed": {"data_types": {"grad_accum_dtype": "float32"}}, "parallel": {"zero_stage": 1}},
            "grad_accum_dtype is 'float32' with parallel.zero_stage 1, expected zero_stage 2 or 3: below them DeepSp",
        ),
        (
            {"deepspeed": {"communication_data_type": "fp16"}},
            "deepspeed.communication_data_type is 'fp16', in which gradients overflow, expected fp32 or bf16, or no",
        ),
        ({"deepspeed": {"communication_data_type": ["fp32"]}}, "is ['fp32'], expected fp32 or bf16, or no such key"),
        ({"deepspeed": {"data_types": "fp32"}}, "deepspeed.data_types is 'fp32', expected a mapping of keys such as"),
        (
            {"deepspeed": {"data_types": {"grad_accum_dtyp": "fp32"}}},
            "deepspeed.data_types.grad_accum_dtyp is not a known key of DeepSpeed (did you mean 'grad_accum_dtype'?)",
        ),
        ({"deepspeed": {"flops_profiler": {"enabeld": True}}}, "enabeld is not a known key of DeepSpeed (did you mean"),
        ({"deepspeed": {"comms_logger": {"verbos": True}}}, "deepspeed.comms_logger.verbos is not a known key of"),
        ({"deepspeed": {"timers": None}}, "deepspeed.timers is None, expected a mapping of keys such as throughput"),
        (
            {"deepspeed": {"data_types": {"buffer_dtype": "fp99"}}},
            "deepspeed.data_types.buffer_dtype is 'fp99', expected one of fp32, bf16, fp16",
        ),
        ({"deepspeed": {"log_level": 7}}, "deepspeed.log_level is 7, expected one of debug, info, warning, error, "),
        ({"deepspeed": {"steps_per_print": "x"}}, "steps_per_print is 'x', expected a whole number of 1 or more"),
        ({"deepspeed": {"wall_clock_breakdown": "yes"}}, "wall_clock_breakdown is 'yes', expected true or false"),
        ({"deepspeed": {"gradient_predivide_factor": 0}}, "predivide_factor is 0, expected a positive number"),
        (
            {"deepspeed": {"prescale_gradients": True}, "parallel": {"zero_stage": 2}},
            "deepspeed.prescale_gradients is True with parallel.zero_stage 2, expected false: DeepSpeed does that only",
        ),
        (
            {"deepspeed": {"gradient_predivide_factor": 2.0}, "parallel": {"zero_stage": 3}},
            "deepspeed.gradient_predivide_factor is 2.0 with parallel.zero_stage 3, expected 1.0: DeepSpeed does that",
        ),
        ({"deepspeed": {"elasticity": None}}, "deepspeed.elasticity is no key of DeepSpeed any more, expected no such"),
        ({"deepspeed": {"zero_optimization": 3}}, "is 3, expected a mapping of keys; the stage is parallel.zero_stage"),
        ({"deepspeed": {"zero_optimization": {"cpu_offload": True}}}, "; set offload_optimizer.device to cpu"),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": "cpu"}}},
            "deepspeed.zero_optimization.offload_optimizer is 'cpu', expected a mapping such as {device: cpu}",
        ),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}},
            "offload_optimizer.device is 'nvme', expected cpu or none: topology updates change master weights",
        ),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}}},
            "offload_optimizer.ratio is 0.5, expected 1",
        ),
        (
            {"deepspeed": {"zero_optimization": {"offload_param": {"device": "cpu"}}}, "parallel": {"zero_stage": 1}},
            "offload_param.device is 'cpu' with parallel.zero_stage 1, expected zero_stage 3",
        ),
    ],
)
def test_misfits(sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**sections)
    assert any(expected in problem for problem in caught.value.problems)


def test_a_block_must_divide_the_canonical_matrix_of_every_sparse_layer() -> None:
    make(sparsity={"block": [32, 32]})  # 352 = 11 * 32
    with pytest.raises(ConfigError) as caught:
        make(sparsity={"block": [64, 1]})
    (problem,) = caught.value.problems
    # The transposed down_proj has its 352 inputs as rows; attention's 128 rows are fine.
    assert "mlp.gate_proj 352 x 128," in problem and "mlp.down_proj 352 x 128 (transposed)" in problem
    assert "self_attn" not in problem
    make(sparsity={"block": [64, 1], "exclude": ["*mlp*", "*lm_head*"]})
    with pytest.raises(ConfigError, match="lm_head"):
        make(sparsity={"block": [1, 64], "include": ["*"], "exclude": []}, model={"hidden_size": 96})
    with pytest.raises(ConfigError, match="on 2 tensor-parallel ranks.*mlp.up_proj 176 x 128"):
        make(sparsity={"block": [32, 1]}, parallel={"tensor": 2})


def test_accumulation_counts_micro_batches() -> None:
    config = make(train={"global_batch_size": 48, "micro_batch_size": 4})
    assert [config.accumulation(ranks) for ranks in (1, 2, 3, 12)] == [12, 6, 4, 1]


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "remedy"),
    [
        (100, 8, 4, "= 32; set global_batch_size to 96 or 128, or micro_batch_size to 5"),
        (10, 4, 3, "= 12; set global_batch_size to 12"),
        (8, 16, 2, "= 32; set global_batch_size to 32, or micro_batch_size to 4"),
    ],
)
def test_a_batch_that_does_not_divide_names_what_to_change(batch: int, micro: int, ranks: int, remedy: str) -> None:
    config = make(train={"global_batch_size": batch, "micro_batch_size": micro})
    with pytest.raises(ConfigError) as caught:
        config.accumulation(ranks)
    assert str(caught.value).endswith(remedy)


def test_settings_made_in_code_are_checked_too() -> None:
    config = make()
    config.parallel.zero_stage = 7
    config.data.seq_length = 1000
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert len(caught.value.problems) == 2


def test_the_known_deepspeed_keys_are_deepspeeds() -> None:
    """Each stands as a word of its own in the sources of the DeepSpeed that is installed."""
    package = importlib.util.find_spec("deepspeed")
    assert package is not None and package.origin is not None
    sources = [*Path(package.origin).parent.glob("**/config*.py"), *Path(package.origin).parent.glob("**/constants.py")]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    inner = {key for keys in INSIDE.values() for key in keys if not re.search(rf"^    {key}:", text, re.MULTILINE)}
    missing = [key for key in (*DEEPSPEED_KEYS, *INSTEAD, *inner) if f'"{key}"' not in text and f"'{key}'" not in text]
    assert missing == [] and not set(DEEPSPEED_KEYS) & set(INSTEAD) and {*INSIDE, *VALUES} <= set(DEEPSPEED_KEYS)
    assert [key for key in ZERO_INSTEAD if not re.search(rf"^    {key}:", text, re.MULTILINE)] == []


def numeric_keys() -> list[tuple[str, str]]:
    config = make()
    sections = [part.name for part in dataclasses.fields(config) if part.name not in NO_DATACLASS]
    hints = {name: typing.get_type_hints(type(getattr(config, name))) for name in sections}
    kinds = (int, float, int | None, float | None)
    return [(name, key) for name in sections for key, kind in hints[name].items() if kind in kinds]


@pytest.mark.parametrize(("section", "key"), numeric_keys())
def test_no_number_of_any_section_may_be_infinite_nan_text_or_a_truth_value(section: str, key: str) -> None:
    """Also where the settings are made by hand, without a file that is checked as it is read."""
    for value in (math.nan, math.inf, -math.inf, "5", True, 10**40):
        config = make()
        setattr(getattr(config, section), key, value)
        problems = config.problems()
        (about,) = [text for text in problems if text.startswith(f"{section}.{key} is ")]
        assert ", expected a " in about and "number" in about and "\n" not in about


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optimizer", "lr", -1e-3),
        ("optimizer", "beta1", 1.0),
        ("optimizer", "beta2", -0.1),
        ("optimizer", "beta2", 1.5),
    ],
)
def test_rates_below_zero_and_betas_outside_their_range_are_refused(section: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{section}.{key} is {value}, expected a (positive )?number"):
        make(**{section: {key: value}})


@pytest.mark.parametrize("name", [part.name for part in dataclasses.fields(SmetConfig)])
def test_the_librarys_messages_name_settings_as_run_files_do(name: str) -> None:
    for text in (
        f"{name} is 5, expected less", f"rank 1 of 2: {name} is 5", f"a ranks' {name} 'own:f' fails",
        f"{name} [1, 2] is odd",
    ):  # fmt: skip
        told = in_run_file(text)
        assert told == text.replace(name, f"sparsity.{name}", 1) and in_run_file(told) == told


def test_words_that_are_no_settings_stay_as_they_are() -> None:
    for text in (
        "train.seed is 3, optimizer.warmup_steps is 5", "too few tiles for the density: 0 has 16", "a block is built",
        "tests.own:prune fails", "the growth is slow", "include what you need", "the method is not there",
        "my_seed is 3", "path/growth is a folder", "mask_initial 'x'", "warmup_steps_of 3",
    ):  # fmt: skip
        assert in_run_file(text) == text


def test_what_gradients_are_summed_in_follows_from_the_settings() -> None:
    told = [(word, summed_in({"data_types": {"grad_accum_dtype": word}}, "bf16")) for word in ("float", "bf16", None)]
    assert told == [("float", "fp32"), ("bf16", "bf16"), (None, "bf16")]
    assert summed_in({}, "fp32") == summed_in({"data_types": None}, "fp32") == "fp32"
    make(deepspeed={"data_types": {"grad_accum_dtype": "bfloat16"}})
    summed = make(deepspeed={"data_types": {"grad_accum_dtype": "fp32"}})
    over = "gradients summed in fp32 over micro-batches and in bf16 over ranks"
    assert numbers(summed) == f"bf16 weights, {over}, fp32 master and moments"
    both = make(deepspeed={"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"})
    assert numbers(both) == "bf16 weights, gradients summed in fp32, fp32 master and moments"
    assert numbers(make()) == "bf16 weights and gradients, fp32 master and moments"


def test_what_the_optimizer_keeps_is_told_in_the_numbers_that_its_formula_declares() -> None:
    own = "tests.pretrain.own_formulas:"
    told = {
        "lion": "fp32 master and moments",
        "adamw_8bit": "fp32 master, moments in int8 and uint8",
        f"{own}Halved": "fp32 master, moments in bf16 and fp32",
        f"{own}Sign": "fp32 master",
    }
    for name, expected in told.items():
        options = {"beta2": 0.95} if name == "adamw_8bit" else {}
        assert numbers(make(optimizer={"name": name, **options})) == f"bf16 weights and gradients, {expected}"


def test_numbers_that_are_refused_now_are_left_out_of_saved_settings() -> None:
    before = {"torch_autocast": {"enabled": True}, "data_types": {"param_dtype": "bf16", "grad_accum_dtype": "fp16"}}
    before["communication_data_type"], before["seq_parallel_communication_data_type"] = "fp16", "fp32"
    assert still_known(before) == {"data_types": {}}
    kept = {"data_types": {"grad_accum_dtype": "float32", "buffer_dtype": "fp32"}, "communication_data_type": "fp32"}
    assert still_known(kept) == kept
    assert still_known({"timers": {"thrughput": {}}, "aio": 3, "dump_state": True}) == {
        "timers": {}, "aio": 3, "dump_state": True,
    }  # fmt: skip


def test_what_deepspeed_takes_is_passed_on() -> None:
    scaled = {"prescale_gradients": True, "gradient_predivide_factor": 2}
    make(deepspeed=scaled, parallel={"zero_stage": 1})
    make(deepspeed={**scaled, "zero_optimization": {"reduce_scatter": False}}, parallel={"zero_stage": 2})
    make(deepspeed={"prescale_gradients": False, "gradient_predivide_factor": 1, "log_level": "INFO", "aio": {}})
    make(deepspeed={"steps_per_print": None, "timers": {"throughput": {}}})
