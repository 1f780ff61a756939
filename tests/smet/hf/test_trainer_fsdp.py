"""``SmetCallback`` in transformers' Trainer under FSDP2: two ranks on CPU by gloo, or GPUs by nccl."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import smet
import smet.hf
from smet import ConfigError
from smet.dtensors import is_cut
from smet.exchange import gather
from smet.fsdp import FsdpStore
from tests.distributed import run_ranks
from tests.smet.hf.cpus import take_cpus_for_accelerators

STEPS, INTERVAL = 8, 3
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole": ({"growth": "momentum"}, {"fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}),
    "in parts": ({"method": "smet-rigl"}, {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}),
    "checkpointing": ({"growth": "momentum"}, {"fsdp_config": {"activation_checkpointing": True}}),
    "bf16": ({"method": "smet"}, {"bf16": True}),
}
"""Settings of ``sparsify``, and of the trainer."""
FAST, SLOW = ("whole",), ("in parts", "checkpointing", "bf16")
RUNS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def data() -> list[dict[str, Tensor]]:
    tokens = torch.randint(3, 64, (8 * STEPS, 12), generator=torch.Generator().manual_seed(5))
    tokens[:, 1:] = (3 * tokens[:, :1] + torch.arange(1, 12)) % 61 + 3
    return [{"input_ids": row, "labels": row} for row in tokens]


def model_of(case: str, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=case == "in parts"))
    smet.sparsify(model, density=0.25, update_interval=INTERVAL, warmup_steps=2, quiet=True, **CASES[case][0])
    return model


def trainer_of(case: str, folder: str, seed: int = 0) -> tuple[Any, Any, list[Any]]:
    from transformers import Trainer, TrainingArguments

    model, options = model_of(case, seed), CASES[case][1]
    args = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
        weight_decay=0.05, save_steps=STEPS // 2, logging_steps=1, report_to=[], disable_tqdm=True, log_level="error",
        lr_scheduler_type="cosine", warmup_steps=2, use_cpu=not torch.cuda.is_available(), fsdp=True, **options,
    )  # fmt: skip
    trainer, seen = Trainer(model, args, train_dataset=data()), list[Any]()
    callback = smet.hf.SmetCallback(trainer, on_update=lambda report: seen.append((report.step, state_of(callback))))
    trainer.add_callback(callback)
    return trainer, callback, seen


def state_of(callback: Any) -> dict[str, Any]:
    """All that a run goes on from, put together from all ranks."""
    topology = callback.run.topology
    found: dict[str, Any] = {}
    for name, layer in topology.layers.items():
        fragment = topology.store.fragment(layer.values)
        found[f"{name} mask"] = topology.bank.bits(layer).cpu().clone()
        for key, own in {"master": fragment.master, **fragment.state}.items():
            found[f"{name} {key}"] = gather(own, fragment.range, fragment.total, topology.store.group).cpu().clone()
    topology.bank.release()
    optimizer = topology.store.optimizer
    for name, mean in optimizer.topology.moments.items():
        found[f"{name} mean"] = (mean.full_tensor() if is_cut(mean) else mean).cpu().clone()
    found["clock"] = optimizer.steps_done, topology.updates_done, topology.last_code
    found["births"] = optimizer.ages.births
    return found


def loss_of(model: Any) -> float:
    from transformers import default_data_collator

    batch = default_data_collator(data()[:8])
    device = next(model.parameters()).device
    with torch.no_grad():
        return float(model.eval()(**{key: value.to(device) for key, value in batch.items()}).loss)


def one(case: str, folder: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    trainer, callback, seen = trainer_of(case, folder)
    trainer.train()
    found = {"updates": seen, "log": trainer.state.log_history, "whole": state_of(callback)}
    found["cut"] = isinstance(callback.run.topology.store, FsdpStore)
    trainer.save_model(f"{folder}/saved")  # of states in parts there is no such model
    found["loss"], device = loss_of(trainer.model), trainer.accelerator.device
    trainer.accelerator.wait_for_everyone()
    if CASES[case][1].get("fsdp_config", {}).get("state_dict_type") != "SHARDED_STATE_DICT":
        loaded = AutoModelForCausalLM.from_pretrained(f"{folder}/saved").to(device)
        found["loaded"] = loss_of(loaded)
        found["kinds"] = {type(layer).__name__ for layer in loaded.model.layers[0].mlp.children()}
    again, other, later = trainer_of(case, folder, seed=9)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS // 2}")
    return {**found, "resumed": state_of(other), "later": later, "log again": again.state.log_history,
            "refused": again_refused(again) if case == "whole" else ""}  # fmt: skip


def again_refused(trainer: Any) -> str:
    try:
        trainer.train()
    except ConfigError as error:
        return str(error)
    return ""


def session(folder: str, cases: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if torch.cuda.is_available():
        dist.destroy_process_group()  # accelerate begins its own, by nccl
    else:
        take_cpus_for_accelerators()
    found = {case: one(case, f"{folder}/{case}") for case in cases}
    return found if cases == FAST else {**found, "loop": loop(f"{folder}/loop")}


def loop(folder: str) -> dict[str, Any]:
    """Of accelerate's own: what it saved after 4 steps, what another loaded, and where both are after 4 more."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import default_data_collator

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), fsdp_plugin=plugin)
    own = data()[dist.get_rank() :: dist.get_world_size()]
    batch = {key: value.to(accelerator.device) for key, value in default_data_collator(own[:4]).items()}
    states = []
    for seed in (0, 9):
        model = model_of("in parts", seed)
        model, optimizer = accelerator.prepare(model, smet.AdamW(model, lr=1e-2))
        run = smet.attach(optimizer, STEPS)
        if seed:
            accelerator.load_state(folder)
            states.append(state_of(SimpleNamespace(run=run)))
        for step in range(STEPS // 2 if seed else 0, STEPS):
            if step == STEPS // 2 and not seed:
                accelerator.save_state(folder)
                states.append(state_of(SimpleNamespace(run=run)))
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        states.append(state_of(SimpleNamespace(run=run)))
        accelerator.free_memory()
    return {"states": states}


@functools.cache
def results(cases: tuple[str, ...], ranks: int = 2) -> list[dict[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(session, ranks, folder, cases, timeout=400)


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not (torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key])]


def check_ranks(ranks: list[dict[str, Any]]) -> None:
    """Two updates, after which all ranks have one state; half of the steps and the rest resumed are all of them."""
    for rank in ranks:
        assert rank["cut"] and [step for step, _ in rank["updates"]] == [INTERVAL, 2 * INTERVAL]
        for (_, ours), (_, first) in zip(rank["updates"], ranks[0]["updates"], strict=True):
            assert different(ours, first) == []
        masks = [name for name in rank["whole"] if name.endswith(" mask")]
        before, after = (state for _, state in rank["updates"])
        assert any(not torch.equal(before[name], after[name]) for name in masks), "the topology moved"
        assert different(rank["whole"], rank["resumed"]) == [] and rank["whole"]["clock"][:2] == (STEPS, 2)
        ((step, later),) = rank["later"]
        assert step == 2 * INTERVAL and different(later, after) == []
        losses, again = ([line["loss"] for line in rank[log] if "loss" in line] for log in ("log", "log again"))
        assert len(losses) == STEPS and losses == again and losses[-1] < losses[0]
        assert [line["smet/update"] for line in rank["log"] if "smet/update" in line] == [1, 2]


def check_saved(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["loaded"] == pytest.approx(rank["loss"], abs=1e-6) and rank["kinds"] >= {"SparseLinear"}


def of_case(case: str) -> list[dict[str, Any]]:
    return [rank[case] for rank in results(FAST if case in FAST else SLOW)]


@pytest.mark.parametrize("case", RUNS)
def test_ranks_agree_and_a_run_resumed_is_the_run(case: str) -> None:
    check_ranks(of_case(case))


def test_what_the_trainer_saved_loads_in_automodel_with_the_trained_loss() -> None:
    check_saved(of_case("whole"))


def test_a_second_train_is_refused_in_one_line() -> None:
    for rank in of_case("whole"):
        assert rank["refused"] == "train() was called again under fsdp; make a new model and Trainer, and resume"


@pytest.mark.slow
def test_activation_checkpointing_changes_nothing() -> None:
    for plain, wrapped in zip(of_case("whole"), of_case("checkpointing"), strict=True):
        assert different(plain["whole"], wrapped["whole"]) == []


@pytest.mark.slow
def test_a_loop_of_accelerates_own_resumes_bit_for_bit() -> None:
    for rank in of_case("loop"):
        saved, done, loaded, resumed = rank["states"]
        assert different(saved, loaded) == [] and different(done, resumed) == []
        assert done["clock"][:2] == (STEPS, 2)


@pytest.mark.gpu
def test_on_gpus_ranks_agree_a_run_resumed_is_the_run_and_its_model_loads() -> None:
    ranks = results((*FAST, *SLOW), min(2, torch.cuda.device_count()))
    for case in (*FAST, *SLOW):
        check_ranks([rank[case] for rank in ranks])
    check_saved([rank["whole"] for rank in ranks])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "version 1": ({"fsdp_version": 1}, "runs FSDP1, expected FSDP2; set fsdp_config={'version': 2}"),
    "first rank loads": (
        {"cpu_ram_efficient_loading": True},
        "cpu_ram_efficient_loading sends parameters and no masks",
    ),
    "offload": ({"cpu_offload": True}, "cpu_offload is not supported"),
    "compile": ({}, "torch_compile under fsdp is not supported"),
    "best": ({"state_dict_type": "FULL_STATE_DICT"}, "load_best_model_at_end under fsdp needs states in parts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_fsdp_cannot_do_is_one_line(case: str, trainer: Callable[..., Any]) -> None:
    options, words = WRONG[case]
    with pytest.raises(ConfigError, match=words) as caught:
        smet.hf.SmetCallback(trainer(case, **options))
    assert "\n" not in str(caught.value)


@pytest.fixture
def trainer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a trainer as accelerate's plugin of these options would have it."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import Trainer, TrainingArguments

    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin says there what it is

    def make(case: str, **options: Any) -> Any:
        model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        smet.sparsify(model, density=0.25, quiet=True)
        made = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
        made.args.torch_compile, made.args.load_best_model_at_end = case == "compile", case == "best"
        made.is_fsdp_enabled = True
        plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **options})
        made.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
        return made

    return make
