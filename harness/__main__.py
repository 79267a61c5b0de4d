"""``python -m harness`` is the installed ``harness``."""

from harness.cli import main

main()
