"""How a run is started, checked, watched and kept running, on one machine and on clusters (docs/clusters.md).

``python -m launch`` needs no torch: it starts at once, and a machine that only starts runs needs no GPU.
"""
