"""``SmetCallback`` in transformers' Trainer: one process, DDP x 2 and ZeRO-1/2/3 x 2, real processes on CPU."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import smet
import smet.hf
from smet import ConfigError
from smet.agreement import fingerprint
from smet.bank import bucket_key
from smet.exchange import gather
from smet.groups import parameter_groups
from smet.memory import Part, measure, plan
from smet.zero import ZeroStore
from tests.distributed import run_ranks
from tests.smet.hf.cpus import tell_of_ranks_without_gpus

LAYOUTS = {"one process": 1, "ddp": 2, "zero-1": 2, "zero-2": 2, "zero-3": 2}
METHODS = ("smet", "rigl")
SHORT = [("one process", "smet"), ("one process", "rigl"), ("ddp", "rigl"), ("zero-2", "rigl"), ("zero-3", "smet")]
RUNS = [
    *((layout, method, 24) for layout, method in SHORT),
    *(pytest.param(layout, method, 60, marks=pytest.mark.slow) for layout in LAYOUTS for method in METHODS),
]
"""Layout, method, and steps: there is a checkpoint after half of them, and an update after each fourth until nine
tenths."""
INTERVAL = 4
SETTINGS: dict[str, Any] = {"density": 0.25, "update_interval": INTERVAL, "stop_fraction": 0.9}


def model_of(seed: int, method: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    extra = {"warmup_steps": 10} if method == "smet" else {}
    smet.sparsify(model, method=method, quiet=True, **SETTINGS, **extra)
    return model


def data() -> list[dict[str, Tensor]]:
    tokens = torch.randint(3, 64, (8 * 60, 12), generator=torch.Generator().manual_seed(5))
    tokens[:, 1:] = (3 * tokens[:, :1] + torch.arange(1, 12)) % 61 + 3  # something to be learned
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer_of(layout: str, method: str, folder: str, steps: int, seed: int = 0) -> tuple[Any, Any, list[Any]]:
    from transformers import Trainer, TrainingArguments

    model = model_of(seed, method)
    options: dict[str, Any] = {"use_cpu": True}
    if layout.startswith("zero"):
        zero = {"stage": int(layout[-1]), "stage3_gather_16bit_weights_on_model_save": True}
        zero |= {"stage3_param_persistence_threshold": 0} if layout == "zero-3" else {}
        options = {
            "ddp_backend": "gloo",
            "gradient_checkpointing": layout == "zero-3",
            "deepspeed": {
                "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto", "zero_optimization": zero,
            },
        }  # fmt: skip
    args = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
        weight_decay=0.05, adam_beta2=0.99, save_steps=steps // 2, logging_steps=6, report_to=[], disable_tqdm=True,
        log_level="error", lr_scheduler_type="cosine", warmup_steps=5, **options,
    )  # fmt: skip
    trainer, seen = Trainer(model, args, train_dataset=data()), list[Any]()
    callback = smet.hf.SmetCallback(trainer, on_update=lambda report: seen.append(agreed(callback, report)))
    trainer.add_callback(callback)
    trainer.add_callback(weigher(callback))
    return trainer, callback, seen


def agreed(callback: Any, report: smet.UpdateReport) -> tuple[int, str, bool]:
    """(step, digest of masks, whether all ranks hold the same masks and the same values)."""
    topology = callback.run.topology
    digest, own = topology.mask_digest(), {}
    for name, layer in topology.layers.items():
        whole = layer.values.numel() == layer.active * layer.grid.tile_size
        own[name] = fingerprint([layer.values] if whole else [master_of(topology.store, layer)]).tolist()
    everyones: list[Any] = [(digest, own)]
    if dist.is_initialized():
        everyones = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, (digest, own))
    return report.step, digest, all(one == everyones[0] for one in everyones)


def master_of(store: Any, layer: Any, key: str = "") -> Tensor:
    fragment = store.fragment(layer.values)
    own = fragment.state[key] if key else fragment.master
    return gather(own, fragment.range, fragment.total, store.group).clone()


def state_of(callback: Any) -> dict[str, Any]:
    """All that a run goes on from, put together from all ranks."""
    topology = callback.run.topology
    found: dict[str, Any] = {}
    for name, layer in topology.layers.items():
        found[f"{name} mask"] = topology.bank.bits(layer).clone()
        for key in ("", "exp_avg", "exp_avg_sq", "birth"):
            found[f"{name} {key}"] = master_of(topology.store, layer, key)
    topology.bank.release()
    optimizer = topology.store.optimizer
    found["clock"] = optimizer.steps_done, topology.updates_done, topology.last_code
    found["births"] = optimizer.ages.births
    return found


def loss_of(trainer: Any) -> float:
    """Of the model as the trainer has it; collective."""
    from transformers import default_data_collator

    batch = default_data_collator(data()[:8])
    model = trainer.model_wrapped
    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)


def weigher(callback: Any) -> Any:
    """Notes what is at rest on this rank when the last backward of a step is done."""
    from transformers import TrainerCallback

    class Weigher(TrainerCallback):
        held: Any = None

        def weigh(self) -> None:
            topology = callback.run.topology
            topology.bank.release()
            if topology.store.optimizer.steps_done > 2:  # moments of all parameters are there
                self.held = measure(topology.store, topology.bank, topology.all_layers)

        def on_train_begin(self, *_: Any, **others: Any) -> None:
            store = callback.run.topology.store
            if isinstance(store, ZeroStore):
                store.before_each_step(self.weigh)  # which is within the trainer's backward

        def on_pre_optimizer_step(self, *_: Any, **others: Any) -> None:
            if isinstance(callback.run.topology.store, smet.LocalStore):
                self.weigh()

    callback.weigher = Weigher()
    return callback.weigher


def planned(callback: Any, layout: str) -> dict[str, dict[str, int]]:
    topology = callback.run.topology
    groups: dict[str, list[Any]] = {"sparse": [], "dense": []}
    values = {id(layer.values) for layer in topology.all_layers.values()}
    for group in parameter_groups(callback.trainer.model, topology.config):
        part = "sparse" if group["name"].startswith("sparse") else "dense"
        lengths = tuple(getattr(param, "ds_numel", param.numel()) for param in group["params"])
        assert all((id(param) in values) == (part == "sparse") for param in group["params"])
        groups[part].append((lengths, group.get("aged", False)))
    buckets: dict[str, int] = {}
    for name, layer in topology.all_layers.items():
        buckets[bucket_key(name)] = buckets.get(bucket_key(name), 0) + layer.grid.mask_bytes
    parts = {"sparse": Part(groups=tuple(groups["sparse"]), buckets=tuple(buckets.values())),
             "dense": Part(groups=tuple(groups["dense"]))}  # fmt: skip
    return {name: plan(part, *sharing(layout), sixteen_bit=False) for name, part in parts.items()}


def sharing(layout: str) -> tuple[int, int]:
    """(ZeRO stage, ranks that share things out)."""
    return (int(layout[-1]), LAYOUTS[layout]) if layout.startswith("zero") else (0, 1)


def dense_bytes(callback: Any, layout: str) -> int:
    """What the sparse layers would take as dense ones."""
    lengths = tuple(layer.grid.rows * layer.grid.cols for layer in callback.run.topology.all_layers.values())
    return sum(plan(Part(groups=((lengths, False),)), *sharing(layout), sixteen_bit=False).values())


def one(layout: str, method: str, folder: str, steps: int) -> dict[str, Any]:
    trainer, callback, seen = trainer_of(layout, method, folder, steps)
    trainer.train()
    whole, losses = state_of(callback), trainer.state.log_history
    trainer.save_model(f"{folder}/saved")
    found = {"ranks": trainer.args.world_size, "updates": seen, "log": losses, "loss": loss_of(trainer), "whole": whole}
    again, other, later = trainer_of(layout, method, folder, steps, seed=9)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-{steps // 2}")
    return {**found, "resumed": state_of(other), "later": later, "log again": again.state.log_history,
            "planned": planned(other, layout), "dense": dense_bytes(other, layout),
            "held": other.weigher.held}  # fmt: skip


def session(folder: str, steps: int) -> dict[tuple[str, str], dict[str, Any]]:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    tell_of_ranks_without_gpus()
    cases = SHORT if steps < 60 else [(layout, method) for layout in LAYOUTS for method in METHODS]
    own = [case for case in cases if LAYOUTS[case[0]] == dist.get_world_size()]
    return {case: one(*case, f"{folder}/{' '.join(case)} {steps}", steps) for case in own}


FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def results(ranks: int, steps: int) -> list[dict[tuple[str, str], dict[str, Any]]]:
    return run_ranks(session, ranks, FOLDER.name, steps, timeout=900)


def every_rank(layout: str, method: str, steps: int) -> list[dict[str, Any]]:
    return [rank[layout, method] for rank in results(LAYOUTS[layout], steps)]


def updates(steps: int) -> int:
    return int(0.9 * steps) // INTERVAL


@pytest.mark.parametrize("layout, method, steps", RUNS)
def test_all_ranks_agree_after_every_update(layout: str, method: str, steps: int) -> None:
    ranks = every_rank(layout, method, steps)
    for rank in ranks:
        assert rank["ranks"] == LAYOUTS[layout]
        assert [step for step, *_ in rank["updates"]] == [INTERVAL * (number + 1) for number in range(updates(steps))]
        assert all(same for *_, same in rank["updates"]) and rank["updates"] == ranks[0]["updates"]
        assert len({digest for _, digest, _ in rank["updates"]}) == updates(steps), "the topology moved each time"


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not (torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key])]


@pytest.mark.parametrize("layout, method, steps", RUNS)
def test_half_of_the_steps_and_the_rest_resumed_are_all_bit_for_bit(layout: str, method: str, steps: int) -> None:
    for rank in every_rank(layout, method, steps):
        assert different(rank["whole"], rank["resumed"]) == []
        assert rank["whole"]["clock"][:2] == (steps, updates(steps))
        assert rank["later"] and rank["later"] == rank["updates"][-len(rank["later"]) :]
        losses, again = ([line["loss"] for line in rank[log] if "loss" in line] for log in ("log", "log again"))
        assert losses[-1] < 0.8 * losses[0] and losses == again


@pytest.mark.parametrize("layout, method, steps", RUNS)
def test_what_the_trainer_saved_loads_in_automodel_with_the_trained_loss(layout: str, method: str, steps: int) -> None:
    from transformers import AutoModelForCausalLM, default_data_collator

    loaded = AutoModelForCausalLM.from_pretrained(Path(FOLDER.name, f"{layout} {method} {steps}", "saved"))
    with torch.no_grad():
        loss = float(loaded(**default_data_collator(data()[:8])).loss)
    trained = [rank["loss"] for rank in every_rank(layout, method, steps)]
    assert trained == [pytest.approx(loss, abs=1e-6)] * len(trained)


@pytest.mark.parametrize("layout, method, steps", RUNS)
def test_updates_are_logged_to_what_the_trainer_reports_to(layout: str, method: str, steps: int) -> None:
    for rank in every_rank(layout, method, steps):
        logged = [line for line in rank["log"] if "smet/update" in line]
        assert [(line["step"], line["smet/update"]) for line in logged] == [
            (INTERVAL * number, number) for number in range(1, updates(steps) + 1)
        ]
        assert all(line["smet/pruned"] == line["smet/grown"] > 0 for line in logged)
        assert len([line for line in rank["log"] if "loss" in line]) == steps // 6, "no log of a step is lost"


@pytest.mark.parametrize("layout, method, steps", RUNS)
def test_bytes_at_rest_are_those_that_are_planned(layout: str, method: str, steps: int) -> None:
    for rank in every_rank(layout, method, steps):
        for part, kinds in rank["planned"].items():
            assert rank["held"][part] == {kind: pytest.approx(size, rel=0.02) for kind, size in kinds.items()}
        sparse = sum(rank["held"]["sparse"].values())
        assert sparse < 0.28 * rank["dense"]


def small(folder: str, model: Any = None, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    own = {key: options.pop(key) for key in ("optimizers", "optimizer_cls_and_kwargs") if key in options}
    args = TrainingArguments(folder, use_cpu=True, report_to=[], disable_tqdm=True, max_steps=8, **options)
    return Trainer(model or model_of(0, "smet"), args, train_dataset=data(), **own)


def dense() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(8, 8))


WRONG: dict[str, tuple[Any, str]] = {
    "a dense model": (lambda folder: small(folder, dense()), "a Sequential, remembers no settings; make it sparse"),
    "another optimizer's name": (lambda folder: small(folder, optim="adafactor"), "optim is 'adafactor', which does"),
    "torch's optimizer": (
        lambda folder: small(folder, optimizers=(torch.optim.AdamW(dense().parameters()), None)),
        "was given a torch.optim.adamw.AdamW, expected smet.AdamW.model., or none",
    ),
    "a class of an optimizer": (
        lambda folder: small(folder, optimizer_cls_and_kwargs=(torch.optim.SGD, {})),
        "was given optimizer_cls_and_kwargs, expected none",
    ),
    "a model": (lambda folder: dense(), "SmetCallback was given a Sequential, expected the trainer that it is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_line(case: str, tmp_path: Path) -> None:
    make, words = WRONG[case]
    with pytest.raises(ConfigError, match=words) as caught:
        smet.hf.SmetCallback(make(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_bf16_and_gradient_checkpointing_train_alike_and_weights_stay_float32(tmp_path: Path) -> None:
    losses, kinds = [], set[torch.dtype]()
    for checkpointing in (False, True):
        trainer = small(
            str(tmp_path / "out"), bf16=True, gradient_checkpointing=checkpointing, learning_rate=1e-2, logging_steps=1,
            save_strategy="no",
        )  # fmt: skip
        callback = smet.hf.SmetCallback(trainer)
        trainer.add_callback(callback)
        layers = smet.sparse_layers(trainer.model)
        for layer in layers.values():
            layer.register_forward_hook(lambda layer, arguments, out: kinds.add(out.dtype))
        trainer.train()
        assert kinds == {torch.bfloat16} and {layer.values.dtype for layer in layers.values()} == {torch.float32}
        assert callback.run is not None and callback.run.updates_done == 1
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


def test_a_checkpoint_without_the_optimizers_state_is_not_gone_on_from(tmp_path: Path) -> None:
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = small(str(tmp_path), save_steps=4, save_only_model=True)
        trainer.add_callback(smet.hf.SmetCallback(trainer, formula="lion"))
        if resume is None:
            trainer.train()
            assert trainer.optimizer.optimizer.formula.name == "lion"
        else:
            with pytest.raises(ConfigError, match="goes on after step 4, and the optimizer's clock stands at 0: the"):
                trainer.train(resume_from_checkpoint=resume)


def test_moments_of_a_byte_take_the_arguments_betas_and_eps_where_somebody_gave_them(tmp_path: Path) -> None:
    for given, betas, eps in (
        ({}, (0.9, 0.95), 1e-8), ({"adam_beta2": 0.97}, (0.9, 0.97), 1e-8), ({"adam_epsilon": 1e-6}, (0.9, 0.95), 1e-6),
    ):  # fmt: skip
        trainer = small(str(tmp_path), **given)
        optimizer = smet.hf.SmetCallback(trainer, formula="adamw_8bit").make_optimizer(trainer.model)
        assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {(betas, eps)}
    with pytest.raises(ConfigError, match=r"optim is 'adamw_bnb_8bit'.*SmetCallback\(trainer, formula='adamw_8bit'\)"):
        smet.hf.SmetCallback(small(str(tmp_path), optim="adamw_bnb_8bit"))


def test_a_second_train_goes_on_with_the_clock_and_an_own_optimizer_is_used(tmp_path: Path) -> None:
    model = model_of(0, "smet")
    trainer = small(str(tmp_path), model, optimizers=(smet.AdamW(model, lr=1e-2), None), logging_strategy="no")
    callback = smet.hf.SmetCallback(trainer)
    trainer.add_callback(callback)
    for steps in (8, 16):
        trainer.train()
        assert callback.run is not None
        assert (callback.run.topology.store.optimizer.steps_done, callback.run.topology.schedule.total_steps) == (
            steps,
            steps,
        )
    assert callback.run.updates_done == 2 and not any("smet/update" in line for line in trainer.state.log_history)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="trl needs Python 3.11")
def test_trls_sft_trainer_takes_the_same_callback(tmp_path: Path) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, 64)}}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    texts = [" ".join(f"w{3 + (first + step) % 61}" for step in range(9)) for first in range(64)]
    args = SFTConfig(
        str(tmp_path), max_steps=16, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True, report_to=[],
        disable_tqdm=True, logging_steps=4, save_strategy="no", bf16=False, max_length=16,
    )  # fmt: skip
    data = Dataset.from_dict({"text": texts})
    trainer = SFTTrainer(model_of(0, "smet"), args, train_dataset=data, processing_class=tokenizer)
    trainer.add_callback(smet.hf.SmetCallback(trainer))
    trainer.train()
    assert [line["smet/update"] for line in trainer.state.log_history if "smet/update" in line] == [1, 2, 3]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
