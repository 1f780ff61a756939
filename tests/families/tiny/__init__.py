"""A family of another shape, for tests: nothing outside this folder knows of it but the run files that name it."""

from __future__ import annotations

from pretrain.models.family import Family
from tests.families.tiny.config import TinyConfig
from tests.families.tiny.inventory import saved, shape, weights

FAMILY = Family(
    package=__name__,
    title="tiny model",
    config=TinyConfig,
    shape=shape,
    weights=weights,
    saved=saved,
    function=("heads", "gated"),
)
