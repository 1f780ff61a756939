"""A LLaMA in Hugging Face's files: where it is, and its tensors one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.errors import CheckpointError
from tools.checkpoints.layers import Weight

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
"""Tokenizer files that a run can use, the better one first."""


def local_folder(model: str, revision: str | None) -> Path:
    """``model`` as a folder: itself, or downloaded from the Hugging Face hub into its cache.

    Raises:
        CheckpointError: neither a folder nor a model on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointError(f"model folder {model} does not exist")
    import huggingface_hub

    wanted = ["config.json", "model*.safetensors", _INDEX, *TOKENIZERS]
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:
        # Networks, names, permissions and gates each have their own class there; all are the user's to mend.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"model {model} is no folder here and cannot be had from the Hugging Face hub: {reason}"
        ) from None


class Weights:
    """The tensors of a folder with ``model.safetensors``, or with several files and their index.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: tuple[str, Any] = ("", None)
        self._file_of = self._find()

    def _find(self) -> dict[str, str]:
        if (self.folder / _INDEX).is_file():
            try:
                files = dict(json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(f"{self.folder / _INDEX} is damaged: it holds no weight_map") from None
            for name in sorted(set(files.values())):
                if not (self.folder / name).is_file():
                    raise CheckpointError(f"{self.folder / name} is missing, which {_INDEX} names")
            return files
        if (self.folder / _SINGLE).is_file():
            return dict.fromkeys(self._file(_SINGLE).keys(), _SINGLE)
        others = [path.name for path in self.folder.glob("*.bin")]
        hint = f"; {others[0]} is of an older format: load and save the model again with transformers" if others else ""
        raise CheckpointError(f"{self.folder} holds neither {_SINGLE} nor {_INDEX}, expected a LLaMA in them{hint}")

    def _file(self, name: str) -> Any:
        import safetensors

        if self._open[0] != name:
            try:
                self._open = (name, safetensors.safe_open(self.folder / name, framework="pt"))
            except safetensors.SafetensorError as error:
                raise CheckpointError(f"{self.folder / name} is damaged: {error}") from None
        return self._open[1]

    def require(self, weights: list[Weight]) -> None:
        """Check that every one of ``weights`` is there in its shape, before any is read.

        Raises:
            CheckpointError: one is missing, of another shape, or no floating-point tensor.
        """
        problems = []
        for weight in weights:
            if weight.name not in self._file_of:
                problems.append(f"{weight.name} is missing")
                continue
            part = self._file(self._file_of[weight.name]).get_slice(weight.name)
            if tuple(part.get_shape()) != weight.shape or part.get_dtype() not in ("F32", "F16", "BF16", "F64"):
                problems.append(f"{weight.name} is {part.get_dtype()} {part.get_shape()}, expected {weight.shape}")
        if problems:
            raise CheckpointError(
                f"{self.folder} does not hold the LLaMA of its config.json: {problems[0]} ({len(problems)} differences)"
            )

    def tensor(self, name: str) -> Tensor:
        """One tensor in fp32."""
        tensor: Tensor = self._file(self._file_of[name]).get_tensor(name)
        return tensor.float()
