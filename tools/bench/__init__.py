"""The benchmark: SMET against dense AdamW under DeepSpeed, every figure with its threshold, in one run.

    python -m tools.bench                                  # a table
    python -m tools.bench --json docs/performance.json     # and every figure as JSON
    python -m tools.bench render docs/performance.json docs/performance.md

One module per measurement; ``figures`` has the thresholds, ``session`` what happens in the ranks.
"""
