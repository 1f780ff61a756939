"""Which extra of the distribution brings a package that is not there."""

from __future__ import annotations

DISTRIBUTION = "smet-train"
EXTRAS = {
    "deepspeed": "train", "pydantic": "train", "tensorboard": "train",
    "yaml": "data", "psutil": "data", "tqdm": "data", "datasets": "data", "pyarrow": "data", "sentencepiece": "data",
    "tokenizers": "data", "zstandard": "data", "rich": "data",
    "huggingface_hub": "hf", "safetensors": "hf", "transformers": "hf",
    "matplotlib": "plot", "PIL": "plot",
    "lm_eval": "eval",
    "mpi4py": "mpi",
    "wandb": "wandb", "trackio": "trackio",
}  # fmt: skip
"""Name that is imported -> the first extra of ``pyproject.toml`` that brings it."""


def missing(command: str, module: str | None) -> str | None:
    """What to say where ``command`` failed to import ``module``; None where no extra would help."""
    name = (module or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return f"{command} needs {name}, which is not installed here; pip install '{DISTRIBUTION}[{EXTRAS[name]}]'"
