"""See ``tools.watch``."""

from __future__ import annotations

import sys

from pretrain.screen import on_screen

from .cli import main

if __name__ == "__main__":
    sys.exit(on_screen(main))
