"""The built-in tasks and suites."""
