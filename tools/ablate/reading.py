"""What the numbers say, in sentences that the numbers choose."""

from __future__ import annotations

import math
from typing import Any

from pretrain.config.yaml_text import read_yaml

from ..packages import CONFIGS
from .statistics import Difference, Spread
from .view import LATER, Group, View

READ_AT = 30
"""Steps behind an update at which the branch experiment is judged."""
TIMES = 10.0
"""The claim: naive Adam's excess loss is more than so many times that with all remedies."""
MANY = 3.0
"""Standard deviations of the floor that count as many."""


def bullets(sentences: list[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def branch_claims(view: View) -> list[str]:
    """Per group of branches: naive Adam and all remedies against the floor, and whether the claim holds."""
    return [sentence for group in view.branch_groups() if (sentence := _claim(view, group))]


def _claim(view: View, group: Group) -> str | None:
    names = view.roles.get("branches") or {}
    branches = view.branch_groups()[group]
    naive, cured, floor = (
        view.branch_spread(branches, names.get(role, ""), READ_AT) for role in ("naive", "remedied", "floor")
    )
    if naive is None or cured is None or floor is None:
        return None
    size, base, density = group
    many, within, ratio = _judge(naive, cured, floor)
    tested = Difference.of(
        *(view.branch_seeds(branches, names[role], READ_AT) for role in ("naive", "floor"))  # one value per seed
    )
    missing = [
        text
        for held, text in (
            (naive.mean > TIMES * max(0.0, cured.mean), f"the factor of {TIMES:g}"),
            (many is not None and many > MANY, "naive far above the floor"),
            (within is not None and within <= 1, "SMET within one deviation of the floor"),
        )
        if not held
    ]
    holds = "The claim holds here." if not missing else f"What does not show here: {'; '.join(missing)}."
    times = "SMET's is not above zero, so there is no ratio" if ratio is None else f"{_times(ratio)} times SMET's"
    return (
        f"**{size}, d = {density:g}, from the {base} state** ({naive.count} branches): {READ_AT} steps after the "
        f'update naive Adam stands {naive.text(4)} nats above "no update", {times}; {names["remedied"]} '
        f"{cured.text(4)}; pruning alone {floor.text(4)}. Naive lies {_deviations(many)} above it "
        f"({tested.verdict() if tested else 'no test'}), SMET {_deviations(within)}. {holds}"
        + _default(view, branches, floor)
    )


def _judge(naive: Spread, cured: Spread, floor: Spread) -> tuple[float | None, float | None, float | None]:
    """Deviations of the floor by which naive and cured lie above it; naive over cured, where that is positive."""
    spread = floor.deviation or None
    many = None if spread is None else (naive.mean - floor.mean) / spread
    within = None if spread is None else (cured.mean - floor.mean) / spread
    return many, within, naive.mean / cured.mean if cured.mean > 0 else None


def _default(view: View, branches: list[dict[str, Any]], floor: Spread) -> str:
    """The same of the variant with the product's own warm-up, where that is another one."""
    name = (view.roles.get("branches") or {}).get("default")
    spread = view.branch_spread(branches, name, READ_AT) if name else None
    if spread is None or not floor.deviation:
        return ""
    distance = (spread.mean - floor.mean) / floor.deviation
    place = "within one deviation of the floor" if distance <= 1 else "further than one deviation from the floor"
    return f" With the product's default, {name}: {spread.text(4)}, {place}."


def _times(ratio: float) -> str:
    """A ratio; beyond a hundred its denominator is noise."""
    return f"{ratio:.1f}" if ratio < 100 else "more than 100"


def _deviations(value: float | None) -> str:
    return "an unknown distance (one branch)" if value is None else f"{value:.1f} of the floor's deviations"


def remaining_shares(view: View) -> list[str]:
    """Per group: how much of naive Adam's distance to the floor each remedy leaves."""
    names = view.roles.get("branches") or {}
    found = []
    for group, branches in view.branch_groups().items():
        naive, floor = (view.branch_spread(branches, names.get(role, ""), READ_AT) for role in ("naive", "floor"))
        if naive is None or floor is None or naive.mean <= floor.mean:
            continue
        parts = []
        for name in branches[0]["excess"]:
            spread = view.branch_spread(branches, name, READ_AT)
            if spread is not None and name not in (names["naive"], names["floor"]) and _same_rate(view, name):
                share = (spread.mean - floor.mean) / (naive.mean - floor.mean)
                parts.append(f"{100 * share:.0f} % with {name}")
        size, base, density = group
        if parts:
            found.append(f"{size}, d = {density:g}, {base}: {'; '.join(parts)}.{_below_zero(floor)}")
    return found


def _same_rate(view: View, name: str) -> bool:
    """Whether a variant trains at the run's own learning rate."""
    return "lr_exponent" not in (view.matrix["branches"]["variants"].get(name) or {})


def _below_zero(floor: Spread) -> str:
    if floor.mean >= 0:
        return ""
    return (
        f' Pruning alone lies below "no update" ({floor.text(4)}): the weights it takes away were worth less than '
        "nothing at this learning rate, and part of the distance to it is that regrown weights bring noise again."
    )


def late_branches(view: View) -> list[str]:
    """How naive Adam's excess depends on the step at which the topology changes, beside what theory says of it."""
    name, betas = (view.roles.get("branches") or {}).get("naive", ""), _betas(view)
    found = []
    for group, branches in view.branch_groups().items():
        size, base, density = group
        parts = []
        for step in sorted({branch["step"] for branch in branches}):
            spread = view.branch_spread([b for b in branches if b["step"] == step], name, READ_AT)
            if spread is not None:
                parts.append(f"{spread.text(4)} at step {step} (factor {cold_start(step, *betas):.1f})")
        if len(parts) > 1:
            found.append(f"{size}, d = {density:g}, {base}: {', '.join(parts)}.")
    return found


def _betas(view: View) -> tuple[float, float]:
    given = view.matrix["run"].get("optimizer") or {}
    return float(given.get("beta1", 0.9)), float(given.get("beta2", 0.999))


def of_run_files(view: View) -> str:
    """Whether what was measured of cold starts is what the run files of this project would see; nothing if it is."""
    (beta1, own), preset = _betas(view), CONFIGS / "presets" / "measured.yaml"
    theirs = float(read_yaml(preset).get("optimizer", {}).get("beta2", own))
    if theirs == own:
        return ""
    factors = [cold_start(1_000_000, beta1, beta2) for beta2 in (own, theirs)]
    return (
        f"All of it is at beta2 {own:g}, where naive Adam moves a regrown weight up to {factors[0]:.1f} times too far "
        f"under a constant gradient. At {theirs:g}, which the run files in `configs/` have, that factor is "
        f"{factors[1]:.1f} ([theory.md](theory.md#with-the-beta2-of-the-run-files)), and the experiment was not made."
    )


def cold_start(step: int, beta1: float, beta2: float) -> float:
    """Largest update, in learning rates, of a weight regrown at ``step`` under naive Adam and a constant gradient."""
    return max(
        (1 - beta1**age) / math.sqrt(1 - beta2**age)
        * math.sqrt(1 - beta2 ** (step + age)) / (1 - beta1 ** (step + age))
        for age in range(1, 200)
    )  # fmt: skip


def _against(view: View, a: str | None, b: str | None, size: str, density: float) -> str | None:
    gap = view.difference(a, b, size, density)
    if gap is None:
        return None
    side = "below" if gap.mean < 0 else "above"
    return f"{a} ends {abs(gap.mean):.3f} nats {side} {b} ({gap.verdict()})"


def final_claims(view: View) -> list[str]:
    """Final validation losses, pair by pair, at every size and density."""
    roles = view.roles
    pairs = [
        (roles.get("remedied"), roles.get("naive")),
        (roles.get("remedied"), roles.get("static")),
        (roles.get("naive"), roles.get("static")),
        (roles.get("remedied"), roles.get("naive_scaled")),
        (roles.get("remedied"), roles.get("static_scaled")),
    ]
    found = []
    for size in view.sizes:
        for density in view.densities:
            said = [text for a, b in pairs if (text := _against(view, a, b, size, density))]
            said += _against_dense(view, size, density)
            if said:
                found.append(f"**{size}, d = {density:g}**: {'; '.join(said)}.")
    return found


def rate_claims(view: View) -> list[str]:
    """The best learning rate by density, beside what the rule lr * d**-e makes of the dense model's best."""
    size, dense = view.sizes[0], view.best_dense_rate(view.sizes[0])
    best = {density: view.best_rate(view.roles.get("swept"), size, density) for density in view.densities}
    known = {density: rate for density, rate in best.items() if rate is not None}
    if dense is None or not known:
        return []
    listed = ", ".join(f"{rate:g} at d = {density:g}" for density, rate in known.items())
    found = [f"Best of the rates tried: {dense:g} for the dense model, {listed}."]
    for exponent in sorted(float(e) for e in view.roles.get("exponents") or {}):
        off = [abs(math.log2(dense * density**-exponent / rate)) for density, rate in known.items()]
        rates = ", ".join(f"{dense * density**-exponent:.2g}" for density in known)
        found.append(
            f"The rule with e = {exponent:g} makes {rates} of the dense model's best: off by {sum(off) / len(off):.1f} "
            f"doublings on average, {max(off):.1f} at most."
        )
    parts = _rates_apart(view, size)
    if parts:
        found.append(
            "The sweep moves the rate of all weights, the rule that of sparse layers alone, which is another thing: "
            + "; ".join(parts) + "."
        )  # fmt: skip
    return found


def _rates_apart(view: View, size: str) -> list[str]:
    """Losses with the rule's rate in the sparse layers only, and in all weights."""
    density, base = view.main_density, view.rate(size)
    swept = view.by_rate(view.roles.get("swept"), size, density)
    parts = []
    for exponent, name in sorted((float(e), name) for e, name in (view.roles.get("exponents") or {}).items()):
        rate = base * (density or 1.0) ** -exponent
        everywhere = next((spread for one, spread in swept.items() if math.isclose(one, rate)), None)
        only = view.spread("validation_loss", name, size, density)
        if exponent > 0 and everywhere is not None and only is not None:
            parts.append(
                f"at d = {density:g}, {rate:g} in the sparse layers and {base:g} elsewhere ({name}) ends at "
                f"{only.text()}, {rate:g} everywhere at {everywhere.text()}"
            )
    return parts


def _against_dense(view: View, size: str, density: float) -> list[str]:
    rate, cured = view.best_dense_rate(size), view.roles.get("remedied")
    if rate is None:
        return []
    dense = view.by_seed("validation_loss", view.roles.get("dense"), size, None, rate)
    gap = Difference.of(view.by_seed("validation_loss", cured, size, density), dense)
    if gap is None:
        return []
    side = "below" if gap.mean < 0 else "above"
    return [f"{cured} ends {abs(gap.mean):.3f} nats {side} dense at its best rate {rate:g} ({gap.verdict()})"]


def spike_claims(view: View) -> list[str]:
    """What the raw loss around updates shows, and what it does not."""
    size, density, roles = view.sizes[0], view.main_density, view.roles
    if density is None:
        return []
    found = []
    for key, what in ((view.rise("after"), "jumps at the update itself by"), (view.rise_over_static(), "")):
        for role in ("naive", "remedied"):
            spread = view.spread(key, roles.get(role), size, density)
            if spread is None:
                continue
            words = what or f"{LATER} steps later has risen, over the static run on the same batches, by"
            found.append(f"{roles[role]} {words} {spread.text(4)} nats on average (seeds: {spread.count}).")
    naive, cured = (view.by_seed(view.rise_over_static(), roles.get(r), size, density) for r in ("naive", "remedied"))
    gap = Difference.of(naive, cured)
    if gap is not None:
        seen = "tells them apart" if gap.significant and gap.mean > 0 else "does not tell them apart"
        found.append(
            f"So the loss around updates of whole runs {seen}: {roles['naive']} minus {roles['remedied']} is "
            f"{gap.mean:.4f} nats ({gap.verdict()}). The branch experiment compares like with like."
        )
    return found


def unfinished(view: View) -> list[str]:
    """Cells that are not in the results."""
    missing: list[Any] = view.results["missing"]
    named = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
    return [f"Cells that are not done ({len(missing)}): {named}."] if missing else []
