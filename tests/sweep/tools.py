"""The tools that are swept: good commands of each, and the inputs they read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """One program."""

    module: str
    commands: tuple[str, ...]
    """Good command lines, in a folder that holds ``inputs``."""
    inputs: tuple[str, ...]
    """Files and folders of the world that the commands read; what is damaged."""
    kept: tuple[str, ...] = ()
    """Words that no mutation takes away: without them hours of work, or connections, would begin."""


CORPUS = ("corpus.bin", "corpus.idx", "corpus.manifest.json")
NOISE = ("noise.bin", "noise.idx")

TOOLS = {
    "preprocess": Tool(
        "tools.preprocess",
        (
            "--input text.jsonl --tokenizer tok.model --workers 1 --output out",
            "--input more --tokenizer tok.model --workers 1 --output out --validation-fraction 0.1 --deduplicate",
            "--input more/b.txt --format text --text-mode line --tokenizer tok.model --workers 1 --output out --json",
        ),
        ("text.jsonl", "more", "tok.model"),
    ),
    "train_tokenizer": Tool(
        "tools.train_tokenizer",
        (
            "--input text.jsonl --vocab-size 384 --pad-to-multiple 128 --character-coverage 1.0 --output t",
            "--input more text.jsonl --vocab-size 384 --output t --sample-bytes 100k --seed 3 --json",
        ),
        ("text.jsonl", "more"),
    ),
    "dataset verify": Tool("tools.dataset", ("verify corpus", "verify corpus noise --json"), (*CORPUS, *NOISE)),
    "dataset inspect": Tool(
        "tools.dataset",
        ("inspect corpus --tokenizer tok.model", "inspect corpus --document 3 --tokenizer tok.model",
         "inspect noise --sample 2 --seq-length 16 --json"),
        (*CORPUS, *NOISE, "tok.model"),
    ),
    "dataset merge": Tool(
        "tools.dataset",
        ("merge corpus corpus --output both", "merge corpus --output both --validation-fraction 0.2 --deduplicate",
         "split corpus --output parts --validation-fraction 0.2"),
        CORPUS,
    ),
    "export_hf": Tool(
        "tools.export_hf",
        ("run out --tokenizer none", "run/checkpoints/step-00000003 out --tokenizer none --dtype bf16 --json",
         "run out --tokenizer none --sparse"),
        ("run",),
    ),
    "import_hf": Tool(
        "tools.import_hf",
        ("export out --density 0.5", "export out --density 1 --method dense --json", "sparse out --density 0.5"),
        ("export", "sparse"),
    ),
    "inspect_checkpoint": Tool(
        "tools.inspect_checkpoint", ("run", "run/checkpoints/step-00000006 --json"), ("run",)
    ),
    "memory_table": Tool("tools.memory_table", ("run", "run run --json"), ("run",)),
    "plan": Tool(
        "tools.plan",
        ("run.yaml", "run.yaml --world-size 4 sparsity.density=0.1 --json",
         "run.yaml --search --gpus 4 --memory 40GB --top 3"),
        ("run.yaml",),
    ),
    "plot_run": Tool("tools.plot_run", ("run", "run --output picture.png --json", "run --smooth 3"), ("run",)),
    "generate": Tool(
        "tools.generate",
        ("run abc --tokenizer tok.model --max-new-tokens 3",
         "run abc de --tokenizer tok.model --max-new-tokens 2 --temperature 0.8 --top-p 0.9 --seed 3 --json",
         "export abc --tokenizer tok.model --max-new-tokens 2",
         "sparse abc --tokenizer tok.model --max-new-tokens 2"),
        ("run", "export", "sparse", "tok.model"),
    ),
    "eval": Tool(
        "tools.evaluate",
        ("run --data noise", "run/checkpoints/step-00000003 --data noise --json", "sparse --data noise"),
        ("run", "sparse", *NOISE),
    ),
    "config": Tool(
        "tools.config.__main__",
        ("show run.yaml", "show run.yaml sparsity.density=0.1 --json", "diff run.yaml run", "schema", "keys"),
        ("run.yaml", "run"),
    ),
    "ablate": Tool(
        "tools.ablate.__main__", ("tiny.yaml --list", "tiny.yaml --list --json", "render results.json page.md"),
        ("tiny.yaml", "results.json"), ("--list", "render"),
    ),
    "bench": Tool(
        "tools.bench.__main__", ("render performance.json page.md", "render performance.json page.md --json"),
        ("performance.json",), ("render",),
    ),
    "launch": Tool(
        "launch.__main__",
        ("run.yaml --dry-run", "run.yaml --dry-run --hostfile hosts --json",
         "run.yaml --slurm --nodes 2 --gpus-per-node 2 --dry-run train.device=cpu", "status run", "status run --json"),
        ("run.yaml", "hosts", "run"), ("--dry-run", "status"),
    ),
    "pretrain": Tool(
        "pretrain.__main__",
        ("run.yaml --dry-run", "run.yaml --dry-run --world-size 2 --rank 1 parallel.tensor=1 --json",
         "run.yaml --dry-run train.steps=5 model.num_hidden_layers=1"),
        ("run.yaml",), ("--dry-run",),
    ),
}  # fmt: skip

READER = "tests.sweep.readers"
ARTIFACTS = {
    "corpus with a manifest": Tool(READER, ("corpus corpus",), CORPUS),
    "corpus without one": Tool(READER, ("corpus noise",), NOISE),
    "checkpoint, exported": Tool(READER, ("export run",), ("run",)),
    "checkpoint, resumed": Tool(READER, ("resume run.yaml",), ("run", "run.yaml", *NOISE)),
    "run file": Tool(READER, ("config run.yaml",), ("run.yaml",)),
}
"""What is read whole after damage, and how; by kind of artifact."""
