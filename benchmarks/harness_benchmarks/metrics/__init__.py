"""Metric scripts for the ``evaluate`` library, loaded by path, so that none is downloaded. Not plugins."""
