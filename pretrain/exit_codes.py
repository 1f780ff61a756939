"""Exit codes of ``python -m pretrain``, for those who start it: people, schedulers, and ``python -m launch``."""

DONE = 0
"""The run reached its last step, or ``train.stop_at``."""
FAILED = 1
"""A bug or a machine that failed; starting again goes on from the last checkpoint."""
USER = 2
"""Something the user has to mend; starting again ends the same way."""
STUCK = 70
"""The watchdog ended a run in which nothing moved any more; starting again goes on."""
STOPPED = 75
"""Asked to end early (signal or time limit), and saved; starting again goes on."""
