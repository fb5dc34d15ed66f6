#!/usr/bin/env python3
"""Make the secrets that docker-compose.yml mounts, in ``secrets/``, and name their owner in ``.env``. Once.

Containers run as the user who makes them, since the files are readable by their owner alone. Needs only Python.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dare_core.cluster_secrets import make_secrets  # noqa: E402  # found by the line above, installed or not


def main() -> None:
    """Make what is missing, say what was done."""
    if os.geteuid() == 0:
        sys.exit("run this as the user who runs docker-compose, not as root: containers get this user's id")
    made = make_secrets(ROOT / "secrets", postgres="postgres:5432", redis="redis:6379")
    owner = ROOT / ".env"
    if not owner.exists():
        owner.write_text(f"DARE_UID={os.geteuid()}\n", "ascii")
    print("secrets/ was made; keep a copy of it" if made else "secrets/ is there already and stays as it is")


if __name__ == "__main__":
    main()
