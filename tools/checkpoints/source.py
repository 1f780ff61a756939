"""A model in Hugging Face's files: where it is, and its tensors one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain import outside
from pretrain.errors import CheckpointError
from pretrain.models import inventory_of
from pretrain.models.family import Family, FamilyConfig
from smet.linear import SparseLinear
from smet.sparse_file import FLOATS

from .layers import SavedWeight
from .leftovers import Dropping, folded

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
        what = "is no folder" if Path(model).exists() else "does not exist"
        raise CheckpointError(f"model folder {model} {what}, expected one with config.json and .safetensors in it")
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

    Args:
        family: knows what the files call its weights.
        dropping: what may be left out.

    Raises:
        CheckpointError: there are none, a file is damaged, or index and files contradict each other.
    """

    def __init__(self, folder: Path, family: Family, dropping: Dropping | None = None):
        self.folder, self.family, self.dropping = folder, family, dropping or Dropping()
        self._open: tuple[str, Any] = ("", None)
        self._file_of = self._find()

    def _find(self) -> dict[str, str]:
        if (self.folder / _INDEX).is_file():
            return self._by_index()
        if (self.folder / _SINGLE).is_file():
            self._require_no_more({_SINGLE})
            return dict.fromkeys(self._file(_SINGLE).keys(), _SINGLE)
        others = [path.name for path in self.folder.glob("*.bin")]
        hint = f"; {others[0]} is of an older format: load and save the model again with transformers" if others else ""
        raise CheckpointError(
            f"{self.folder} holds neither {_SINGLE} nor {_INDEX}, expected a {self.family.title} in them{hint}"
        )

    def _by_index(self) -> dict[str, str]:
        """Tensor -> file, as the index says, once the files are seen to agree with it."""
        path = self.folder / _INDEX
        try:
            files: dict[str, str] = dict(outside.read_json(path)["weight_map"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path} is damaged: it holds no weight_map") from None
        for name in sorted(set(map(str, files.values()))):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{path} names the file {name!r:.80}, expected .safetensors files beside it")
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{self.folder / name} is missing, which {_INDEX} names")
        self._require_no_more(set(files.values()))
        stray = []
        for file in sorted(set(files.values())):
            held = set(self._file(file).keys())
            stray += [name for name in sorted(held) if files.get(name) != file and not self.dropping.takes(name)]
            if gone := [name for name, where in files.items() if where == file and name not in held]:
                raise CheckpointError(f"{self.folder / file} does not hold {gone[0]}, which {_INDEX} says it does")
        if stray:
            raise CheckpointError(
                f"{self.folder} holds tensors that {_INDEX} does not list, or lists elsewhere: {folded(stray)}; drop "
                "them with --drop NAME"
            )
        return files

    def _require_no_more(self, files: set[str]) -> None:
        """Other weights beside those that are read would be left out without a word."""
        found = {path.name for path in self.folder.glob("model*.safetensors")} - files
        more = [name for name in sorted(found) if not self.dropping.takes(name)]
        if more:
            raise CheckpointError(
                f"{self.folder} holds {', '.join(more)} beside {', '.join(sorted(files)[:3])}: which is the model? "
                f"Remove one, or leave it out with --drop {more[0]}"
            )

    def _file(self, name: str) -> Any:
        import safetensors

        if self._open[0] != name:
            try:
                self._open = (name, safetensors.safe_open(self.folder / name, framework="pt"))
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(f"{self.folder / name} is damaged: {error}") from None
        return self._open[1]

    def require_depth(self, layers: int) -> None:
        """Check that there are tensors for so many layers, before the weights of a model of that depth are listed.

        Raises:
            CheckpointError: there are not.
        """
        if layers > len(self._file_of):
            raise CheckpointError(
                f"{self.folder} does not hold the {self.family.title} of its config.json: {len(self._file_of)} tensors"
                f" for {layers} layers"
            )

    def require(self, weights: list[SavedWeight], model: FamilyConfig) -> None:
        """Check that every one of ``weights`` is there in its shape, and nothing else, before any is read.

        A copy of the embedding that is tied as the head, and rotary frequencies that are those of ``model``, are
        no other weights.

        Raises:
            CheckpointError: one is missing, of another shape, or no floating-point tensor; or there is a tensor that
                none of them takes, and that is not to be dropped.
        """
        problems = []
        for weight in weights:
            name = self.family.hf.file_name(weight.name)
            if name not in self._file_of:
                problems.append(f"{name} is missing")
                continue
            dtype, found = self._held(name, weight)
            if found != weight.shape or dtype not in FLOATS:
                problems.append(f"{name} is {dtype} {list(found)}, expected {weight.shape}")
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CheckpointError(
                f"{self.folder} does not hold the {self.family.title} of its config.json: {problems[0]}{more}"
            )
        unused = self._names() - {self.family.hf.file_name(weight.name) for weight in weights}
        unused -= {name for name in unused if self.family.hf.says_nothing_new(name, model, self._tensor)}
        if left := [name for name in sorted(unused) if not self.dropping.takes(name)]:
            shape = inventory_of(model).shape
            head = self.family.hf.file_name(f"{shape.head}.weight") if shape.tied else ""
            tied = f" ({head} differs from the embedding that config.json ties it to)" if left == [head] else ""
            raise CheckpointError(
                f"{self.folder} holds {len(left)} tensor{'s' if len(left) > 1 else ''} that the {self.family.title} of "
                f"its config.json has no place for: {folded(left)}{tied}; it is another model, unless you drop them: "
                "--drop NAME, or a pattern such as --drop '*.bias'"
            )

    def _held(self, name: str, weight: SavedWeight) -> tuple[str, tuple[int, ...]]:
        """Type and shape of the tensor ``name``, which is to be ``weight``."""
        part = self._file(self._file_of[name]).get_slice(name)
        return part.get_dtype(), tuple(part.get_shape())

    def _names(self) -> set[str]:
        """Names of all weights that the files have."""
        return set(self._file_of)

    def layer(self, weight: SavedWeight) -> SparseLinear | None:
        """The sparse layer of a weight, in fp32; None where the files have a matrix."""
        return None

    def tensor(self, name: str) -> Tensor:
        """One weight in fp32, by its name in the model.

        Raises:
            CheckpointError: it holds NaN or infinite weights, of which no run could make anything.
        """
        return self._tensor(self.family.hf.file_name(name))

    def _tensor(self, name: str) -> Tensor:
        """One tensor by its name in the files."""
        single = self._read(name).float()
        if odd := single.numel() - int(single.isfinite().sum()):
            raise CheckpointError(
                f"{self._file_of[name]}: {odd:,} of {single.numel():,} weights of {name} are NaN or infinite in fp32, "
                "expected finite ones; the model is damaged or has diverged, and cannot be imported"
            )
        return single

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._file(self._file_of[name]).get_tensor(name)
        return tensor


def tokenizer_in(folder: Path) -> tuple[str | None, list[str]]:
    """Name of the tokenizer file that a run can use, the better one first, and why others were passed over."""
    passed: list[str] = []
    for name in TOKENIZERS:
        if (folder / name).is_file():
            if not (problem := _unusable(folder / name)):
                return name, passed
            passed.append(f"{name} is passed over: {problem}")
    return None, passed


def _unusable(path: Path) -> str:
    """Why a tokenizer file cannot be used; empty if it can."""
    import sentencepiece
    import tokenizers

    try:
        if path.suffix == ".json":
            tokenizers.Tokenizer.from_file(str(path))
        else:
            sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except Exception:
        # The Rust binding raises bare `Exception`.
        kind = "Hugging Face tokenizer" if path.suffix == ".json" else "SentencePiece model"
        return f"it is no {kind}" + (", though it may be tiktoken's" if path.suffix == ".model" else "")
    return ""
