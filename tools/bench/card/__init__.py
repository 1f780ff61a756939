"""The benchmark of one GPU: ``python -m tools.bench gpu --json docs/performance-gpu.json``.

One process and the few that it starts; no launcher, no network. Sections come in the order of their importance, each
is written as soon as it is done, and what does not fit into ``--seconds`` is named instead of measured.
"""
