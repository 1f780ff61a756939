"""What a name of one's own may stand for: whether what was found is it, and can be called as it will be.

Asked where names are looked up, so that a class in the place of a function, or a function of other arguments, is one
line before anything is built, and no traceback in the middle of a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from smet.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What a name can stand for."""

    text: str
    """In a message, behind ``expected``."""
    fits: Callable[[Any], bool]


ANYTHING = Wanted("anything", lambda found: True)


def function_of(*given: str) -> Wanted:
    """A function that is called with so many arguments, by place; messages call them ``given``.

    A class is none, though it can be called: whoever asks a function for its answer would make an object.
    """
    return Wanted(
        f"a function of ({', '.join(given)})",
        lambda found: not isinstance(found, type) and not misfit(found, *given),
    )


def derived_from(base: type) -> Wanted:
    """A class derived from ``base``."""
    return Wanted(
        f"a class derived from {base.__module__}.{base.__qualname__}",
        lambda found: isinstance(found, type) and issubclass(found, base),
    )


def misfit(function: Callable[..., Any], /, *given: object, **options: Any) -> str:
    """Why ``function`` cannot be called so; empty where it can, or is compiled and does not say what it takes."""
    if not callable(function):
        return f"{described(function)} cannot be called"
    if (signature := _signature(function)) is None:
        return ""
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        return str(error)
    return ""


def require_fit(what: str, name: str, made: Callable[..., Any], /, *given: object, **options: Any) -> None:
    """See that ``made``, which ``name`` stands for, takes ``given`` and the ``options`` of the entry ``what``.

    An option may have any name, those of the parameters here too.

    Raises:
        ConfigError: it does not.
    """
    if wrong := misfit(made, *given, **options):
        raise ConfigError(f"{what}.options do not fit {name}: {wrong}")


def require_methods(what: str, name: str, kind: type, base: type) -> None:
    """See that the methods of ``kind``, which ``name`` stands for, can be called as those of ``base`` are.

    Arguments with a default go by name, the others by place. A method that ``kind`` has not is not missed here.

    Raises:
        ConfigError: with every one that cannot.
    """
    problems = []
    for method, asked in vars(base).items():
        if method.startswith("_") or not inspect.isfunction(asked) or not hasattr(kind, method):
            continue
        parts = list(inspect.signature(asked).parameters.values())
        if isinstance(inspect.getattr_static(kind, method), (staticmethod, classmethod)):
            parts = parts[1:]  # self is not handed on
        by_name = {part.name: None for part in parts if part.default is not part.empty}
        function = getattr(kind, method)
        if misfit(function, *(part.name for part in parts if part.name not in by_name), **by_name):
            arguments = ", ".join(part.name for part in parts)
            problems.append(
                f"{what} is '{name}', whose {method} is {described(function)}, expected one of ({arguments})"
            )
    if problems:
        raise ConfigError(problems)


def make(what: str, name: str, kind: Callable[[], T]) -> T:
    """An object of the class that ``name`` stands for, which is made without arguments.

    Raises:
        ConfigError: it cannot.
    """
    try:
        return kind()
    except Exception as error:  # whatever a class of somebody else raises
        raise ConfigError(
            f"{what} is '{name}', which cannot be made ({type(error).__name__}: {error}); expected a class that is made"
            " without arguments"
        ) from error


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # what is compiled need not have any
        return None


def described(found: Any) -> str:
    """What ``found`` is, for people who wrote it, or took it for something else."""
    if isinstance(found, type):
        return "a class"
    if not callable(found):
        name = type(found).__name__
        return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    if (signature := _signature(found)) is None:
        return "a function"
    parts = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
    return f"a function of {signature.replace(parameters=parts, return_annotation=signature.empty)}"
