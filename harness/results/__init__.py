"""Records on disk, as tables, and finished adapters in other projects' formats."""
