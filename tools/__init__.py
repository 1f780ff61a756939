"""Command-line tools, run from a checkout as ``python -m tools.NAME``. Nothing imports this package."""
