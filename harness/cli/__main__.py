"""``python -m harness.cli`` is the installed ``harness``."""

from harness.cli import main

main()
