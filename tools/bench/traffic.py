"""Bytes that a rank sends per step, counted from the collectives themselves."""

from __future__ import annotations

from pretrain.config import RunConfig
from pretrain.plan import Rank, blocks_of, plan_rank
from pretrain.plan.sending import sending

from .engines import Side
from .figures import Figure, unmeasured
from .session import Session

KINDS = ("gradients", "weights", "masks")


def measure(session: Session) -> dict[str, dict[str, int]]:
    """Bytes by kind of one step of each engine, one more with replicated masks, and of a topology update."""
    found = {name: _sent(side, session) for name, side in session.sides.items() if name != "SMET dense residency"}
    with session.extra(mask_residency="replicated") as side:
        side.step(session.batches)
        found["replicated"] = _sent(side, session)
    with session.smet.engine.traffic() as counter:
        session.smet.topology.update()
    found["topology update"] = counter.take()
    return found


def _sent(side: Side, session: Session) -> dict[str, int]:
    with side.engine.traffic() as counter:
        side.step(session.batches)
    return counter.take()


def outside(config: RunConfig, ranks: int) -> int:
    """Bytes that embedding, final norm and head take on either side, by the planner's rules."""
    blocks = [block for block in blocks_of(config) if not block.is_layer]
    return sum(sending(Rank(config, blocks, ranks, 1, dense=True))[kind] for kind in KINDS)


def figures(sent: dict[str, dict[str, int]], dense: str, config: RunConfig, ranks: int) -> list[Figure]:
    """From what ``measure`` returned.

    Args:
        dense: the faster dense engine.
    """
    whole = {name: sum(kinds[kind] for kind in KINDS) for name, kinds in sent.items()}
    if not whole[dense]:
        return unmeasured(("bytes_sent", "bytes_sent_replicated", "bytes_sent_whole_model"), "one rank sends nothing")
    same = outside(config, ranks)
    planned = sum(plan_rank(config, ranks, dense=True).sent[kind] for kind in KINDS)
    base = whole[dense] - same
    note = (
        f"counted collectives of a step of one micro-batch, less the {same / 1e6:.2f} MB of embedding, norm and head, "
        f"which are alike; the planner's dense total is {planned / whole[dense]:.4f} of the counted one"
    )
    return [
        Figure(name="bytes_sent", value=(whole["SMET"] - same) / base, note=note),
        Figure(name="bytes_sent_replicated", value=(whole["replicated"] - same) / base, note="as above"),
        Figure(
            name="bytes_sent_whole_model", value=whole["SMET"] / whole[dense],
            note=f"{whole['SMET'] / 1e6:.1f} of {whole[dense] / 1e6:.1f} MB per rank, embedding and head included",
        ),
    ]  # fmt: skip
