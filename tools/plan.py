"""What a run will take on every rank - bytes, traffic, FLOPs - before it starts, and which layouts fit.

python -m tools.plan configs/7b.yaml --world-size 64
python -m tools.plan configs/7b.yaml --search --gpus 64 --memory 80GB
"""

from __future__ import annotations

import sys

from pretrain.screen import on_screen

from .planner.cli import main

if __name__ == "__main__":
    sys.exit(on_screen(main))
