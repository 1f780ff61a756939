"""How the product's defaults stand against the measurements."""

from __future__ import annotations

from smet import SmetConfig

from .statistics import Difference, Spread
from .view import View


def sentences(view: View) -> list[str]:
    """One about each default: warm-up, protection of young tiles, learning-rate exponent."""
    size, density = (view.sizes or [""])[0], view.main_density
    if density is None:
        return []
    found = (about(view, size, density) for about in (_warmup, _protection, _exponent))
    return [text for text in found if text]


def _share(spread: Spread | None) -> str:
    return "-" if spread is None else f"{100 * spread.mean:.0f} %"


def _advice(gap: Difference, change: str, keep: str) -> str:
    """``gap`` is the alternative minus what is measured as the default."""
    if gap.significant and gap.mean < 0:
        return f"The measurement speaks for {change}."
    if gap.significant:
        return f"The measurement speaks for {keep}."
    return f"The measurement does not tell them apart, so {keep} stays."


def _warmup(view: View, size: str, density: float) -> str | None:
    long, short = view.roles.get("remedied"), view.roles.get("short_warmup")
    gap = view.difference(short, long, size, density)
    if gap is None:
        return None
    recycled = [view.spread("recycled", name, size, density) for name in (long, short)]
    steps = [_warmup_of(view, name) for name in (long, short)]
    interval = view.matrix["run"]["sparsity"]["update_interval"]
    return (
        f"**Warm-up W** (default {SmetConfig().warmup_steps} steps with an interval of "
        f"{SmetConfig().update_interval}; here {steps[0]} of {interval}): with W = {steps[1]} instead, the final "
        f"loss changes by {gap.mean:+.3f} nats ({gap.verdict()}), and {_share(recycled[1])} of the weights just grown "
        f"are pruned at the next update instead of {_share(recycled[0])}. "
        + _advice(gap, "a warm-up shorter than the interval", "W as long as the interval, the paper's setting,")
        + _branch_warmups(view)
    )


def _warmup_of(view: View, name: str | None) -> int:
    keys = view.matrix["methods"].get(name) or {}
    return int(keys.get("warmup_steps", view.matrix["run"]["sparsity"]["warmup_steps"]))


def _branch_warmups(view: View) -> str:
    """Excess loss in the branch experiment of every variant that differs in W alone, in its first group."""
    groups = view.branch_groups()
    variants = (view.matrix.get("branches") or {}).get("variants") or {}
    names = [
        name for name, given in variants.items()
        if given and given.get("update", True) and set(given) == {"warmup_steps", "reference"}
    ]  # fmt: skip
    if not groups or not names:
        return ""
    branches = next(iter(groups.values()))
    parts = []
    for name in names:
        spread = view.branch_spread(branches, name, 30)
        if spread is not None:
            parts.append(f"{spread.text(4)} at W = {variants[name]['warmup_steps']}")
    return f" Excess loss 30 steps into a branch: {', '.join(parts)}." if parts else ""


def _protection(view: View, size: str, density: float) -> str | None:
    plain, protected = view.roles.get("remedied"), view.roles.get("protected")
    gap = view.difference(protected, plain, size, density)
    if gap is None:
        return None
    recycled = [view.spread("recycled", name, size, density) for name in (plain, protected)]
    return (
        f"**Protection of young tiles** (default: {SmetConfig().protect_rounds} updates): protecting them for one "
        f"update changes the final loss by {gap.mean:+.3f} nats ({gap.verdict()}); {_share(recycled[0])} of the "
        f"weights just grown are pruned at the next update without it, {_share(recycled[1])} with it. "
        + _advice(gap, "switching it on", "no protection")
    )


def _exponent(view: View, size: str, density: float) -> str | None:
    names = {float(e): name for e, name in (view.roles.get("exponents") or {}).items()}
    losses = {e: view.by_seed("validation_loss", name, size, density) for e, name in sorted(names.items())}
    means = {e: spread for e, seeds in losses.items() if (spread := Spread.of(list(seeds.values()))) is not None}
    own = SmetConfig().lr_exponent
    if own not in means or len(means) < 2:
        return None
    best = min(means, key=lambda e: means[e].mean)
    listed = ", ".join(f"{spread.text()} at e = {e:g}" for e, spread in means.items())
    text = f"**Learning-rate exponent e** (default {own:g}): final loss {listed}. "
    if best == own:
        return text + "The default is the best of these here."
    gap = Difference.of(losses[best], losses[own])
    assert gap is not None
    against = gap.significant and gap.mean < 0
    kept = (
        f" The default stays e = {own:g} all the same, the paper's at 60 M to 7 B weights, which this page is far "
        f"from: before a long run, sweep optimizer.lr with sparsity.lr_exponent {best:g} and {own:g}."
    )
    return text + (
        f"e = {best:g} is lowest, {abs(gap.mean):.3f} nats below the default ({gap.verdict()}). "
        + _advice(gap, f"e = {best:g} at this learning rate, size and density", f"e = {own:g}, the paper's rule,")
        + (kept if against else "")
    )
