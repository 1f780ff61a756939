"""The run folder: settings, metrics and checkpoints of one run. One writes it, one reads it."""

from pretrain.run_folder.reader import Reached as Reached
from pretrain.run_folder.reader import RunReader as RunReader
from pretrain.run_folder.writer import RunFolder as RunFolder
from pretrain.run_folder.writer import note as note
from pretrain.run_folder.writer import require_writable as require_writable
