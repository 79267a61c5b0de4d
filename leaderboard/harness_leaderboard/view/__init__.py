"""Boards to one plain view model: every word and every number format, no markup and no record."""
