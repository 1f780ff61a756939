"""Reading, writing and converting published checkpoints in one process, on the CPU."""
