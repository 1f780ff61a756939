"""docs/performance-gpu.md from docs/performance-gpu.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...markdown import table

SECTIONS = ("kernels", "products", "formulas", "training", "resume", "tests")
"""Of a result, in the order in which they are measured."""

BANDWIDTH = 0.7
"""The fraction of a copy's bandwidth that expand, compress and Adam are to reach."""
Result = dict[str, Any]


def page(result: Result) -> str:
    """The page of one result."""
    title = "# Performance on one GPU" + (
        " (a rehearsal on a CPU: sizes are tiny, times mean nothing)" * result["rehearsal"]
    )
    return "\n\n".join([title, _intro(result), *_sections(result)]) + "\n"


def _intro(result: Result) -> str:
    machine = result["machine"]
    card = machine["gpu"] or machine["processor"]
    memory = f", {result['memory'] / 2**30:.0f} GiB" if result["memory"] else ""
    lines = [
        "This page is made by `python -m tools.bench render docs/performance-gpu.json docs/performance-gpu.md` from "
        "the result of `python -m tools.bench gpu --json docs/performance-gpu.json`, one command on one card. Ratios "
        "are times of SMET over times of the dense side on the same card in the same minute, medians and quartiles "
        "over rounds in which the sides take turns; below 1 SMET is faster.",
        f"Card: {card}{memory}; {result['date']}; Python {machine['python']}, torch {machine['torch']}, DeepSpeed "
        f"{machine['deepspeed']}; {machine['kernels']}; revision {machine['revision']}; {result['seconds']:.0f} s in "
        "all.",
        _verdict(result),
    ]
    return "\n\n".join(lines)


def missed(result: Result) -> list[str]:
    """What falls short: bandwidths, wrong results, failed sections and tests."""
    sections = result["sections"]
    found = [f"{name} failed ({why.splitlines()[-1] if why else why})" for name, why in result["failed"].items()]
    if (tests := sections.get("tests")) and tests["failed"]:
        found.append(f"{tests['failed']} tests")
    for name, kernel in sections.get("kernels", {}).get("kernels", {}).items():
        if not kernel["right"]:
            found.append(f"{name}: wrong results")
        if kernel["fraction"] < BANDWIDTH and not result["rehearsal"]:
            found.append(f"{name}: {kernel['fraction']:.2f} of a copy's bandwidth, expected {BANDWIDTH}")
    wrong = sum(not row["right"] for row in sections.get("products", {}).get("rows", []))
    if wrong:
        found.append(f"{wrong} cases of products are wrong")
    found += [f"{name}: wrong results" for name, step in sections.get("formulas", {}).items() if not step["right"]]
    if "resume" in sections and not sections["resume"]["equal"]:
        found.append("a resumed run differs from the uninterrupted one")
    return found


def _verdict(result: Result) -> str:
    short, left = missed(result), result["left_out"]
    absent = [name for name in SECTIONS if not {name} & {*result["sections"], *result["failed"], *left}]
    return f"Missed: {'; '.join(short) or 'nothing'}. Left out for want of time: {', '.join(left) or 'nothing'}." + (
        f" Not asked for, or cut off: {', '.join(absent)}." if absent else ""
    )


def _sections(result: Result) -> Iterator[str]:
    sections = result["sections"]
    if "training" in sections:
        yield "## Whole steps"
        yield from _training(sections["training"])
    if "formulas" in sections:
        yield "## Norms, gates, rotations and the loss"
        yield from _formulas(sections["formulas"])
    if "products" in sections:
        yield "## Products over active tiles against cuBLAS"
        yield from _products(sections["products"])
    if "kernels" in sections:
        yield "## Expand, compress and Adam"
        yield from _kernels(sections["kernels"])
    if "resume" in sections:
        found = sections["resume"]
        said = "equal to the bit" if found["equal"] else "NOT equal"
        yield "## Resume"
        yield (
            f"A run with tiles of {found['steps']} steps and {found['updates']} topology updates, and one that goes on "
            f"from its checkpoint after step {found['stopped_after']} in a new process: weights, moments, masks and "
            f"losses are {said} (torch's deterministic algorithms on)."
        )
    if "tests" in sections:
        found = sections["tests"]
        yield "## Tests that need a GPU"
        yield f"{found['passed']} passed, {found['failed']} failed."


def _ratio(found: dict[str, Any], key: str = "median") -> str:
    low, high = found["quartiles"]
    return f"{found[key]:.3f} ({low:.3f} to {high:.3f})"


def _training(settings: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for setting in settings:
        dense, busy = setting["peaks"][setting["dense"]]["bytes"], setting["where"][setting["dense"]].get("busy")
        for side, step in setting["steps"].items():
            peak, own = setting["peaks"][side] or {"bytes": None}, setting["where"][side].get("busy")
            rows.append(
                [
                    f"{setting['title']}, ZeRO-{setting['zero_stage']}, {setting['tokens']:,} tokens", side,
                    f"{1e3 * step['seconds']:.1f} ms", _ratio(step, "ratio"),
                    "" if own is None else f"{1e3 * own:.1f} ms", "" if own is None else f"{own / busy:.2f}",
                    "" if peak["bytes"] is None else f"{peak['bytes'] / 1e9:.2f} GB",
                    "" if peak["bytes"] is None else f"{peak['bytes'] / dense:.2f}",
                    "" if peak["bytes"] is None else f"{peak['ratio']:.2f}",
                ]
            )  # fmt: skip
    heads = [
        "model",
        "side",
        "step",
        "step / dense step",
        "GPU busy",
        "busy / dense busy",
        "peak memory",
        "peak / dense",
    ]
    yield table([*heads, "peak / planned"], rows)
    yield (
        "One process, bf16, optimizer step and all; dense is torch's fused AdamW under the same DeepSpeed stage. The "
        "1b-shaped stack is six of the 24 layers of the 1b model with a quarter of its vocabulary, so that its "
        "head takes its real share; the 350m model has a feed-forward width of 2,816 = 22 x 128 on all sides. SMET "
        "chooses by itself who multiplies: tiles where they are faster, else expand and the dense product. *GPU busy* "
        "is the sum of a step's kernels. Where it is well below the step, the GPU waits for Python, of which SMET's "
        "layers need more than `nn.Linear`: larger micro-batches or wider layers hide that, smaller ones do not."
    )
    for setting in settings[:2]:
        if any(setting["where"].values()):
            yield from _where(setting)


def _where(setting: dict[str, Any]) -> Iterator[str]:
    where = setting["where"]
    names = list(where)
    kinds = [kind for kind in where[names[0]] if kind not in ("clock", "busy")]
    rows = [[kind, *(f"{1e3 * where[name].get(kind, 0.0):.1f}" for name in names)] for kind in kinds]
    place = f"{setting['title']}, ZeRO-{setting['zero_stage']}, {setting['tokens']:,} tokens"
    yield f"Milliseconds of one step on the GPU by kind of kernel, {place}:"
    yield table(["kernels", *names], rows)


def _formulas(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        [
            name, *(f"{step['microseconds'][which]:.0f} us" for which in ("plain", "fused")), _ratio(step, "ratio"),
            f"{step['errors']['plain']:.4f}", f"{step['errors']['fused']:.4f}" + ("" if step["right"] else " WRONG"),
        ]
        for name, step in found.items()
    ]  # fmt: skip
    yield table(["step", "plain", "fused", "fused / plain", "error, plain", "error, fused"], rows)
    yield (
        "Forward and backward at the sizes of the 1b-shaped stack, bf16: as torch does them one after the other, and "
        "fused by torch.compile; error: the largest relative one of result and gradients against fp32. In the table "
        "of whole steps, *plain formulas* are the same engines without the fused ones."
    )


def _products(found: dict[str, Any]) -> Iterator[str]:
    rows = []
    for row in found["rows"]:
        tile = f"{row['tile'][0]} x {row['tile'][1]}"
        ratios = row["ratios"]
        rows.append(
            [
                f"{row['out']} x {row['in']}, {row['tokens']:,} tokens", tile, f"{row['density']:g}",
                *(f"{ratios[name]['median']:.2f}" for name in ("forward", "input gradient", "values gradient")),
                _ratio(ratios["all"]), f"{max(row['errors'].values()):.4f}" + ("" if row["right"] else " WRONG"),
            ]
        )  # fmt: skip
    yield table(
        ["out x in", "tile", "density", "forward", "input gradient", "values gradient", "all three", "error"], rows
    )
    yield (
        "Time of the tiles' product over cuBLAS's on the whole matrix, bf16, played back from a recording, so that "
        "none waits for Python; error: the largest relative one of the three against fp32."
    )
    if text := _limits(found["rows"]):
        yield text


def _limits(rows: list[dict[str, Any]]) -> str:
    """What keeps tiles from the rate of the whole product, from the first rows of square tiles."""
    first: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["tile"][0] == row["tile"][1] and row["density"] == 0.25:
            first.setdefault(row["tile"][0], row)
    if len(first) < 2:
        return ""
    said = [
        f"{side}: {row['tflops']['forward']:.0f} TFLOP/s, inputs at {row['tflops']['forward'] / side:.1f} TB/s"
        for side, row in sorted(first.items())
    ]
    dense = next(iter(first.values()))["cublas_tflops"]["forward"]
    return (
        "What limits them is not arithmetic but reading: a program multiplies each input that it fetches from the L2 "
        "cache by one tile's width of outputs only, so there are as many operations for each byte as a tile is wide, "
        f"and the cache gives what it gives. Forward, by side of the tile: {'; '.join(said)}; cuBLAS reaches "
        f"{dense:.0f} TFLOP/s, as its programs are 128 to 256 wide. What would help: wider tiles, or masks in which "
        "neighbouring rows of tiles share their columns, so that a program can serve several with one read. Where a "
        "matrix has fewer active tiles than the GPU has multiprocessors (350m; 2048 x 2048 with tiles of 128), the "
        "gradient of the values leaves some idle unless its sum over the tokens is split, which is tried where it "
        "may pay."
    )


def _kernels(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        [name, _ratio(kernel, "fraction"), f"{kernel['microseconds']:.1f} us", "equal" if kernel["right"] else "WRONG"]
        for name, kernel in found["kernels"].items()
    ]
    yield table(["kernel", "fraction of a copy's bandwidth", "time", "against plain torch"], rows)
    yield (
        f"A copy moves {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s, counting bytes read and written; kernels "
        f"count what they must move at least. To be reached: {BANDWIDTH}."
    )
