"""What is found under a name of one's own: whether it is what is wanted, and can be called as it will be."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import pytest

from smet.errors import ConfigError
from smet.wanted import derived_from, described, function_of, make, misfit, require_fit, require_methods


def grown(site: object, count: int, share: float = 0.5) -> int:
    return count


@wraps(grown)
def wrapped(*arguments: Any, **options: Any) -> int:
    return grown(*arguments, **options)


class Grown:
    """As an object it is a function; as a class it would only be made."""

    def __init__(self, site: object = None, count: int = 0):
        self.count = count

    def __call__(self, site: object, count: int) -> int:
        return count


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        (grown, True),
        (wrapped, True),
        (Grown(), True),
        (partial(grown, share=1.0), True),
        (lambda *arguments: 0, True),
        (max, True),  # says nothing of what it takes
        (Grown, False),
        (partial(grown, 1, 2), False),
        (lambda site: 0, False),
        (lambda site, count, more: 0, False),
        (lambda site, *, count: 0, False),
        (3, False),
        (None, False),
    ],
)
def test_a_function_of_two_arguments(found: Any, fits: bool) -> None:
    assert function_of("site", "count").fits(found) == fits
    assert function_of("site", "count").text == "a function of (site, count)"


def test_what_was_found_is_told_as_it_was_written() -> None:
    told = [described(found) for found in (Grown, Grown(), grown, max, 3, 0.5, [])]
    assert told == [
        "a class", "a function of (site, count)", "a function of (site, count, share=0.5)", "a function", "an int",
        "a float", "a list",
    ]  # fmt: skip


def test_what_is_compiled_and_says_nothing_of_its_arguments_is_believed() -> None:
    assert misfit(max, 1, 2) == "" and misfit(grown) == "missing a required argument: 'site'"
    require_fit("logging.writers[0]", "builtins:max", max, None, key=None)
    with pytest.raises(ConfigError, match=r"^here.options do not fit own:grown: got an unexpected keyword argument"):
        require_fit("here", "own:grown", grown, None, 3, shre=1)


def test_an_option_may_be_called_as_any_parameter_here_is() -> None:
    def made(run: object, name: str = "", what: int = 0, made: int = 0, function: int = 0) -> None: ...

    options = {"name": "first", "what": 1, "made": 2, "function": 3}
    require_fit("logging.writers[0]", "own:made", made, None, **options)
    with pytest.raises(ConfigError, match=r"^here.options do not fit own:grown: got an unexpected keyword argument"):
        require_fit("here", "own:grown", grown, None, 3, **options)


class Base:
    """What is called."""

    def before(self, step: int) -> None: ...

    def serves(self, layer: object, x: object, forced: bool = False) -> None: ...

    def after(self, step: int, record: object) -> None: ...


class Fits(Base):
    @staticmethod
    def before(number: int) -> None: ...  # type: ignore[override]

    @classmethod
    def after(cls, *arguments: Any) -> None: ...

    def more(self) -> None: ...


class Misfits(Base):
    def before(self) -> None: ...  # type: ignore[override]

    def serves(self, layer: object, x: object) -> None: ...  # type: ignore[override]

    after = 3  # type: ignore[assignment]


def test_methods_must_take_what_those_of_the_base_take_each_that_does_not_is_named() -> None:
    require_methods("callbacks[0].name", "own:Fits", Fits, Base)
    with pytest.raises(ConfigError) as caught:
        require_methods("callbacks[0].name", "own:Misfits", Misfits, Base)
    assert caught.value.problems == [
        "callbacks[0].name is 'own:Misfits', whose before is a function of (self), expected one of (self, step)",
        "callbacks[0].name is 'own:Misfits', whose serves is a function of (self, layer, x), expected one of"
        " (self, layer, x, forced)",
        "callbacks[0].name is 'own:Misfits', whose after is an int, expected one of (self, step, record)",
    ]
    assert derived_from(Base).fits(Fits) and not derived_from(Base).fits(Fits()) and not derived_from(Base).fits(grown)


def test_a_class_that_is_not_made_without_arguments_is_one_line() -> None:
    class Asks:
        def __init__(self, much: int):
            self.much = much

    with pytest.raises(ConfigError, match=r"compute is 'own:Asks', which cannot be made \(TypeError: .*'much'\)"):
        make("compute", "own:Asks", Asks)
