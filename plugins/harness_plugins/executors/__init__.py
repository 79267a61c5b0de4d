"""Where workers run, one file each: see `harness.Executor`."""
