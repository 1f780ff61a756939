"""The subcommands of ``smet``. To add one: a module with ``main(arguments) -> int``, and its line here.

This table imports nothing, so that ``smet --help`` is there at once; a module is imported when its command is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A module that is called with what stands behind the command."""

    module: str
    """As in the checkout, such as ``tools.plan``; its ``main`` takes the arguments and returns the exit code."""
    help: str
    """What it does, in a few words."""
    before: tuple[str, ...] = ()
    """Words for the module in front of those that are given, where it has several commands itself."""
    words: tuple[str, ...] = ()
    """Words behind the command that its module takes for commands of its own, beside argparse; to be completed."""
    needs: tuple[str, ...] = ()
    """Packages beyond torch and numpy that are looked for first, where the module would fail late or in many lines."""
    own_code: bool = False
    """Whether it takes names of one's own parts, ``package.module:name``, which may lie in the working folder."""


@dataclass(frozen=True)
class Group:
    """Commands below one word: ``smet corpus verify``."""

    help: str
    commands: Mapping[str, Command | Group]


RUN = ("yaml", "psutil", "deepspeed")
USE = ("yaml", "tqdm")

COMMANDS: dict[str, dict[str, Command | Group]] = {
    "runs": {
        "quickstart": Command("tools.quickstart", "from nothing to a trained model", needs=RUN),
        "train": Command("pretrain.__main__", "train, as one process or one rank of many", needs=RUN, own_code=True),
        "launch": Command(
            "launch.__main__",
            "start a run on one machine or many, and keep it running",
            words=("check", "status"),
            own_code=True,
        ),
        "status": Command("launch.__main__", "how a run is doing", ("status",)),
        "watch": Command("tools.watch.cli", "a live page of one or several runs"),
        "plot": Command("tools.plot_run", "draw a run, or several in one picture"),
        "memory": Command("tools.memory_table", "bytes at rest of several runs, side by side"),
    },
    "data": {
        "corpus": Group(
            "make corpora, and look after them",
            {
                "make": Command("tools.preprocess", "text to a corpus of token ids"),
                "verify": Command("tools.dataset", "structure, checksums and token ids of a corpus", ("verify",)),
                "inspect": Command("tools.dataset", "counts; or a document or sample as text", ("inspect",)),
                "merge": Command("tools.dataset", "several corpora into one", ("merge",)),
                "split": Command("tools.dataset", "a corpus into training and validation", ("split",)),
                "bench": Command("tools.dataset", "throughput of corpus make on this machine", ("bench",)),
            },
        ),
        "tokenizer": Group("make tokenizers", {"train": Command("tools.train_tokenizer", "train a tokenizer on text")}),
    },
    "models": {
        "export": Command("tools.export_hf", "a checkpoint as a Hugging Face model", own_code=True),
        "import": Command("tools.import_hf", "a Hugging Face model as a checkpoint to train on", own_code=True),
        "inspect": Command("tools.inspect_checkpoint", "what a checkpoint holds", own_code=True),
        "generate": Command("tools.generate", "text that a trained model writes", needs=USE, own_code=True),
        "eval": Command("tools.evaluate", "how well a trained model predicts text", needs=USE, own_code=True),
    },
    "planning and measuring": {
        "plan": Command("tools.plan", "memory, traffic and time of a run before it starts", own_code=True),
        "config": Command(
            "tools.config.__main__",
            "run files: keys, schema, where values come from, new ones",
            words=("schema", "keys", "show", "diff", "new"),
            own_code=True,
        ),
        "bench": Command(
            "tools.bench.__main__", "SMET against dense AdamW on this machine", words=("gpu", "tiles", "render")
        ),
        "ablate": Command(
            "tools.ablate.__main__", "methods x densities x seeds, each cell a run", words=("render",), own_code=True
        ),
    },
    "this command": {
        "completion": Command("tools.completion", "completion of these words in bash and zsh"),
    },
}
"""Headings of ``smet --help`` -> word -> what it calls."""

WORDS: dict[str, Command | Group] = {word: one for commands in COMMANDS.values() for word, one in commands.items()}
