"""The built-in tasks and suites."""

REVISION = "Revision seen in public code, not resolved against the hub."
