"""How a command ends, beyond 0 (all is well) and the 1 and 2 that errors carry (``harness.errors``)."""

TRACKING_INCOMPLETE = 3  # every result is there, an observer failed
TRIALS_FAILED = 4  # the sweep is complete, some trials failed or diverged
INTERRUPTED = 130  # as a shell says of a command that Ctrl-C ended
