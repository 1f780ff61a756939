"""A model's ``config.json`` as the ``model`` section of a run, by what its family says of it."""

from __future__ import annotations

from pathlib import Path

from pretrain import outside
from pretrain.config.typed import build, problems_of
from pretrain.errors import ConfigError
from pretrain.models.family import Family, FamilyConfig
from smet.sparse_file import AS_DENSE

from .leftovers import Dropping
from .sparse_source import is_sparse


def read_config(folder: Path, family: Family, name: str, dropping: Dropping | None = None) -> FamilyConfig:
    """The ``model`` section of the model in ``folder``.

    Args:
        family: the family that it is read as.
        name: what a run file calls that.
        dropping: keys that may be left out.

    Raises:
        ConfigError: it is another kind of model, or has parts that the family does not build; names every such key.
    """
    path = folder / "config.json"
    try:
        raw = outside.read_json(path, 16 * outside.MEGABYTE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}), expected the config.json of a {family.title}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no object but {str(raw)[:40]!r}, expected the config.json of a {family.title}")
    if is_sparse(folder):  # weights that are stored in another way, of a model that is none other
        raw = {key: value for key, value in raw.items() if key not in ("quantization_config", AS_DENSE)}
    given = family.hf.from_config(path, raw, dropping or Dropping())
    problems: list[str] = []
    model, _ = build(family.config, {**given, "family": name}, "model", problems)
    if problems := problems or problems_of("model", model):
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return model
