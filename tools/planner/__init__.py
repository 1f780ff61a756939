"""Parts of ``python -m tools.plan``: predicted time, the search over layouts, and what is printed."""
