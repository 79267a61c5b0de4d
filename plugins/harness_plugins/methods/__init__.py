"""One file per method. Every module in this package is registered as a plugin of its own."""
