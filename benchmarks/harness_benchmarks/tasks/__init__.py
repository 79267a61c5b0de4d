"""One file or folder per task. Every module in this package is registered as a plugin of its own."""
