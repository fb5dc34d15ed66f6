"""``python -m dare_core.cli``."""

from dare_core.cli.main import main

main()
