"""``python -m dare_core.cli``."""

from dare_core.cli import main

main()
