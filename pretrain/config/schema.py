"""One dataclass per section of a run file but ``model``, whose keys are its family's; ``pretrain.config.run`` holds
them all.

Every section has ``problems()``: one sentence per invalid value, with what was found, what was
expected and what to change. What concerns two sections at once is in ``pretrain.config.checks``.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from pretrain.paths import LocalPath
from pretrain.rules import below, no_choice
from pretrain.writers import WRITERS
from smet.named import is_own, problem


@dataclass(kw_only=True)
class Source:
    """One corpus of a blend."""

    path: LocalPath
    """Prefix of the corpus: ``<path>.bin`` and ``<path>.idx``, relative to the working directory."""
    weight: float = 1.0
    """Share of the samples drawn from this corpus, relative to the other weights."""

    def problems(self, where: str) -> list[str]:
        """Every invalid value, one sentence each; ``where`` is the dotted name of this source."""
        found = [] if self.path else [f"{where}.path is empty, expected the prefix of a .bin and .idx file"]
        if not self.weight > 0:
            found.append(f"{where}.weight is {self.weight}, expected a positive number")
        return found


@dataclass(kw_only=True)
class Stage:
    """One blend of a curriculum. A blend may also be written as one prefix, a string."""

    until_tokens: int | None = None
    """The next stage begins after so many tokens of the whole run, rounded up to a whole sample; the last has none."""
    blend: tuple[Source, ...]
    """Corpora of this stage; one that stood in an earlier stage goes on where it was."""

    def problems(self, where: str) -> list[str]:
        """Every invalid value, one sentence each; ``where`` is the dotted name of this stage."""
        found = [] if self.blend else [f"{where}.blend is empty, expected a prefix or a list of {{path, weight}}"]
        for position, source in enumerate(self.blend):
            found += source.problems(f"{where}.blend[{position}]")
        return found + twice(f"{where}.blend", self.blend)


def twice(where: str, blend: tuple[Source, ...]) -> list[str]:
    """Corpora that stand twice in a blend: both would give the same samples, one behind the other."""
    counts = Counter(os.path.normpath(source.path) for source in blend)
    return [
        f"{where} has {path} {count} times, expected each corpus once; give it the sum of the weights"
        for path, count in counts.items()
        if count > 1
    ]


@dataclass(kw_only=True)
class DataConfig:
    """What is read: either ``train`` or ``curriculum``. A blend may also be written as one prefix, a string."""

    train: tuple[Source, ...] = ()
    """Corpora of the training blend."""
    curriculum: tuple[Stage, ...] = ()
    """Training blends one after another, each ``until_tokens``, the last until the end."""
    validation: tuple[Source, ...] = ()
    """Corpora of the validation blend; empty = no evaluation."""
    tokenizer: LocalPath | None = None
    """Path of a SentencePiece ``.model`` or Hugging Face ``tokenizer.json``; checked against the corpus."""
    seq_length: int
    """Tokens that one training sequence predicts (a sample holds one more)."""
    seed: int = 0
    """Seed of the order of samples, a function of (seed, epoch, sample number) only."""
    reset_attention: bool = False
    """Keep attention within each document of a sample; without it, documents that share a sample see each other."""
    eos_id: int | None = None
    """End-of-document token for ``reset_attention``; default: the corpora's, from their manifests."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("data", self, 1, ("seq_length",)) + below("data", self, 0, ("seed",))
        if self.eos_id is not None:
            found += below("data", self, 0, ("eos_id",))
        if not self.train and not self.curriculum:
            found.append("data.train is empty, expected a prefix or a list of {path, weight} (or data.curriculum)")
        elif self.train and self.curriculum:
            found.append("data.train and data.curriculum are both given, expected one of them; set the other to null")
        for name in ("train", "validation"):
            for position, source in enumerate(getattr(self, name)):
                found += source.problems(f"data.{name}[{position}]")
            found += twice(f"data.{name}", getattr(self, name))
        for position, stage in enumerate(self.curriculum):
            found += stage.problems(f"data.curriculum[{position}]")
        return found + self._stage_problems()

    def _stage_problems(self) -> list[str]:
        """Stages that do not follow each other; a stage is at least one sample long."""
        found, start = [], 0
        length = max(1, self.seq_length)
        for position, stage in enumerate(self.curriculum):
            name, until = f"data.curriculum[{position}].until_tokens", stage.until_tokens
            last = position == len(self.curriculum) - 1
            if last and until is not None:
                found.append(f"{name} is {until}, expected none: the last stage goes on until the run ends")
            elif not last and until is None:
                found.append(f"{name} is missing: every stage but the last needs the token at which it ends")
            elif until is not None and -(-until // length) <= start:
                least = "1" if position == 0 else f"more than {start * length}, where the stage before it ends"
                found.append(f"{name} is {until}, expected {least}{' or more' if position == 0 else ''}")
            start = max(start, -(-(until or 0) // length))
        return found


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop."""

    steps: int
    """Optimizer steps of the whole run; schedules are laid out over them."""
    stop_at: int = 0
    """Save and end after this step, to be continued later; 0 = at ``steps``."""
    global_batch_size: int
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int = 1
    """Sequences per rank and micro-batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and products in ``bf16`` or ``fp32``; master weights and moments are fp32 either way."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""
    seed: int = 0
    """Seed of the initial weights."""
    output_dir: LocalPath
    """Run folder, relative to the working directory."""
    consistency_interval: int = 500
    """Optimizer steps between comparisons of what several ranks must hold alike; 0 = never."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``cpu``, ``cuda``, or ``auto``: cuda where there is one."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("train", self, 1, ("steps", "global_batch_size", "micro_batch_size"))
        found += below("train", self, 0, ("seed", "stop_at", "consistency_interval"))
        found += no_choice("train", self)
        if not self.output_dir:
            found.append("train.output_dir is empty, expected the path of the run folder")
        return found


@dataclass(kw_only=True)
class ParallelConfig:
    """How the work is split. Data-parallel ranks are what remains: world size / (tensor * pipeline)."""

    zero_stage: int = 2
    """ZeRO stage: 1 splits optimizer state over data-parallel ranks, 2 gradients too, 3 weights too."""
    tensor: int = 1
    """Ranks that share one layer's matrices."""
    pipeline: int = 1
    """Ranks that share the layers, as stages."""
    sequence: bool = False
    """Split norms and residuals over the sequence among the tensor-parallel ranks."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("parallel", self, 1, ("tensor", "pipeline"))
        if self.zero_stage == 0:
            found.append(
                "parallel.zero_stage is 0, expected 1, 2 or 3: without a partition each rank would hold all"
                " optimizer state, and DeepSpeed's stage 0 skips part of the gradient norm in pipelines;"
                " stage 1 trains the same on any number of ranks"
            )
        elif self.zero_stage not in (1, 2, 3):
            found.append(
                f"parallel.zero_stage is {self.zero_stage}, expected 1, 2 or 3: ZeRO ends at stage 3,"
                " where weights, gradients and optimizer state are all split"
            )
        if self.sequence and self.tensor == 1:
            found.append(
                "parallel.sequence is true with tensor 1, expected tensor 2 or more: it splits among"
                " tensor-parallel ranks; set sequence to false or raise tensor"
            )
        return found


@dataclass(kw_only=True)
class EvaluationConfig:
    """Loss on the validation blend."""

    interval: int = 0
    """Optimizer steps between evaluations; 0 = only at the end."""
    samples: int = 256
    """Sequences per evaluation, over all ranks."""
    prompts: tuple[str, ...] = ()
    """Texts that the model goes on with at evaluations, in samples.jsonl and on the screen; ``''`` = a new document."""
    prompts_interval: int = 0
    """Optimizer steps between those; 0 = at every evaluation."""
    prompts_tokens: int = 48
    """Tokens that it adds to each, at most."""
    prompts_temperature: float = 0.0
    """0 = the likeliest token each time; more = drawn, the less likely ones the more often."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("evaluation", self, 0, ("interval", "prompts_interval", "prompts_temperature"))
        return found + below("evaluation", self, 1, ("samples", "prompts_tokens"))


@dataclass(kw_only=True)
class CheckpointConfig:
    """When the state is saved, what is kept, and where a run goes on from."""

    interval: int = 0
    """Optimizer steps between checkpoints; 0 = only at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept; 0 = all."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0 = none."""
    resume: LocalPath = "auto"
    """``auto``: from the run folder's latest, if any; ``never``; or the path of a checkpoint."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("checkpoint", self, 0, ("interval", "keep_last", "keep_every"))
        if not self.resume:
            found.append("checkpoint.resume is empty, expected auto, never or the path of a checkpoint")
        return found


@dataclass(kw_only=True)
class CallbackConfig:
    """A callback of the user's own. May also be written as its name, a string."""

    name: str
    """``package.module:Class``, derived from ``pretrain.callbacks.base.Callback``."""
    options: dict[str, Any] = field(default_factory=dict)
    """What it is made with."""

    def problems(self, where: str) -> list[str]:
        """Every invalid value, one sentence each; ``where`` is the dotted name of this callback. Imports nothing."""
        if is_own(self.name):
            return []
        return [
            f"{where}.name is '{self.name}', expected package.module:Class; built-in ones have sections of their own"
        ]


@dataclass(kw_only=True)
class WriterConfig:
    """A writer. May also be written as its name, a string."""

    name: str
    """``tensorboard``, ``wandb`` or ``trackio``; or ``package.module:function`` of one's own, which gives a
    ``pretrain.writers.Writer``."""
    options: dict[str, Any] = field(default_factory=dict)
    """What it is made with; those of ``wandb`` and ``trackio`` go to their ``init``, such as ``project``."""

    def problems(self, where: str) -> list[str]:
        """Every invalid value, one sentence each; ``where`` is the dotted name of this writer. Imports nothing."""
        wrong = problem(f"{where}.name", self.name, WRITERS)
        return [wrong] if wrong else []


@dataclass(kw_only=True)
class LoggingConfig:
    """What the run tells about itself."""

    interval: int = 10
    """Optimizer steps between progress lines; metrics.jsonl has every step."""
    writers: tuple[WriterConfig, ...] = ()
    """What else gets the figures: ``tensorboard``, ``wandb``, ``trackio``, or writers of one's own."""
    traffic: bool = True
    """Count the bytes that each step sends, by kind, in runs of several ranks (``bytes_sent_...`` in metrics.jsonl)."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = below("logging", self, 1, ("interval",))
        for position, writer in enumerate(self.writers):
            found += writer.problems(f"logging.writers[{position}]")
        names = Counter(writer.name for writer in self.writers)
        twice = [name for name, count in names.items() if count > 1]
        return found + [f"logging.writers has {name} twice, expected each writer once" for name in twice]
