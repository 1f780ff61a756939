"""What the rows of a question come to, in words that the numbers choose."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from .answers import READ, UNEQUAL, Answer
from .questions import EQUAL, Question
from .statistics import means_over_common

VERDICTS = ("**It does not pay.** ", "**It is not sure to pay.** ", "**It pays.** ", "")
"""Of a sparse model against dense ones; nothing where there is no dense one to compare with."""

TELLING = 0.2
"""Seconds of single runs that differ by less may be the machine's."""


def overview(answered: Mapping[Question, Sequence[Answer]], dense: Collection[str]) -> list[str]:
    """A sentence of each question: first where sparse models do not pay, then where they do, then how to train them.

    Args:
        dense: methods without sparse layers.
    """
    told: dict[tuple[str, str], tuple[list[str], str]] = {}
    for question, rows in answered.items():  # two questions may compare the same rows
        key = verdict(rows, dense), outcome(rows, dense)
        told.setdefault(key, ([], sentence(rows, dense)))[0].append(question.asks)
    ordered = sorted(told.items(), key=lambda pair: VERDICTS.index(pair[0][0]))
    return [f"{said}{' '.join(asked)} {text}." for (said, _), (asked, text) in ordered]


def verdict(rows: Sequence[Answer], dense: Collection[str]) -> str:
    """One of ``VERDICTS``."""
    known = compared(rows)
    of_dense = [row for row in known if row.row.method in dense]
    sparse = [row for row in known if row.row.method not in dense]
    if rows[0] not in of_dense or not sparse:
        return VERDICTS[3]
    best = lowest(known)
    if best in sparse and all(best.surely_below(row) for row in of_dense):
        return VERDICTS[2]
    beaten = any(all(row.surely_below(other) for other in sparse) for row in of_dense)
    return VERDICTS[0 if beaten else 1]


def sentence(rows: Sequence[Answer], dense: Collection[str]) -> str:
    """``outcome``, and from which of the other rows the lowest cannot be told apart."""
    text, known = outcome(rows, dense), compared(rows)
    best = lowest(known) if known else rows[0]
    beside = _reference(best, rows[0], known, dense)
    same = [row.name for row in known if row not in (best, beside) and not best.surely_below(row)]
    return text + (f"; it is not told apart from {', '.join(same)}" if same and beside is not None else "")


def outcome(rows: Sequence[Answer], dense: Collection[str]) -> str:
    """Which is lowest, by how much and in which time."""
    known = compared(rows)
    if not known:
        return "Nothing is done"
    best = lowest(known)
    beside = _reference(best, rows[0], known, dense)
    if beside is None:
        return f"Of those that are compared only {', '.join(row.name for row in known)} has a loss"
    if best is rows[0]:
        return f"{best.name} is lowest, and nearest {_below(beside, best)}"
    return f"{best.name} is lowest, {_gap(best, beside)}{_cost(best, beside)}{_ends(best, beside)}"


def _reference(best: Answer, first: Answer, known: Sequence[Answer], dense: Collection[str]) -> Answer | None:
    """What the lowest is held against: the first row; of several dense ones, for a sparse model, the best of them."""
    others = [row for row in known if row is not best and best.minus(row) is not None]
    if first.row.method in dense and best.row.method not in dense:
        others = [row for row in others if row.row.method in dense]
    elif best is not first:
        others = [row for row in others if row is first]
    return lowest(others) if others else None


def _below(row: Answer, best: Answer) -> str:
    over = row.minus(best)
    assert over is not None
    return f"is {row.name}, {abs(over.mean):.3f} nats above it ({over.verdict()})"


def _gap(best: Answer, other: Answer) -> str:
    over = best.minus(other)
    assert over is not None
    return f"{abs(over.mean):.3f} nats below {other.name} ({over.verdict()})"


def _cost(best: Answer, other: Answer) -> str:
    own, its = (row.mean(READ["seconds"]) for row in (best, other))
    if not own or not its or abs(own / its - 1) <= TELLING:
        return ""
    return f", in {own / its:.2f} times its time"


def _ends(*rows: Answer) -> str:
    named = [row.name for row in rows if row.at_an_end]
    return f"; the last rate that was tried is the best of {' and of '.join(named)}" if named else ""


def compared(rows: Sequence[Answer]) -> list[Answer]:
    """Rows with a loss, without those that are the static model again."""
    return [row for row in rows if row.loss is not None and (row is rows[0] or not row.stands_still)]


def lowest(rows: Sequence[Answer]) -> Answer:
    """By its mean over the seeds that all of them have, or over its own where they have none in common."""
    means = means_over_common([row.losses for row in rows])
    return min(zip(means, rows, strict=True), key=lambda pair: pair[0])[1]


def conditions(question: Question, rows: Sequence[Answer]) -> list[str]:
    """What is equal, under which load it ran, and which rows are not what they seem."""
    return [_equality(question, rows), *_load(question, rows), *_still(rows), *_diverged(question, rows)]


def _equality(question: Question, rows: Sequence[Answer]) -> str:
    read, what = READ[question.equal], EQUAL[question.equal]
    known = [(row.name, value) for row in rows if (value := row.mean(read)) is not None]
    first = rows[0].mean(read)
    if first is None:
        return f"Equal {what} were asked for, and not measured."
    off = [(name, value / first) for name, value in known if abs(value / first - 1) > UNEQUAL]
    if not off:
        return f"Equal are {what}, within {100 * UNEQUAL:.0f} % of {rows[0].name}'s."
    return f"Equal are {what}, but for {', '.join(f'{name} ({ratio:.3f} of the first row)' for name, ratio in off)}."


def _load(question: Question, rows: Sequence[Answer]) -> Iterator[str]:
    """Where time is what is equal: whether all rows had the processor alike."""
    ratios = [
        wall / cpu for row in rows
        if (wall := row.mean(lambda cell: cell.get("train_seconds"))) and (cpu := row.mean(READ["seconds"]))
    ]  # fmt: skip
    if question.equal == "seconds" and ratios and max(ratios) > 1.2 * min(ratios):
        yield (
            f"Time is the processor's; the clock's was {min(ratios):.2f} to {max(ratios):.2f} times that, so rows ran "
            "beside different other work, which slows the processor too."
        )


def _still(rows: Iterable[Answer]) -> Iterator[str]:
    for row in rows:
        if row.stands_still:
            yield f"No update of {row.name} could replace anything: it is the static model."


def _diverged(question: Question, rows: Iterable[Answer]) -> Iterator[str]:
    for row in rows:
        lost = sum(cell.get("validation_loss") is None for cell in row.cells)
        if lost:
            yield f"{lost} of {len(question.seeds)} runs of {row.name} diverged and are not in its mean."
