"""Observers of the hooks `harness_trial_started`, `_progress` and `_finished`, one file each."""
