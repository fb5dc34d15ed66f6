"""Ask the Python advisory database about every pin of requirements.lock, by pip-audit in an environment of its own.

    python scripts/audit.py [ENVIRONMENT]

Exit status: 0, nothing is known against the pins; 1, something is, as printed; 3, the database or the package could not be
reached, so nothing was audited.
"""

import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = PROJECT / "requirements.lock"
#: pip-audit's own: pins are asked about as they stand, and nothing is resolved or installed.
ARGUMENTS: Final = ("--requirement", str(LOCK), "--no-deps", "--disable-pip", "--progress-spinner", "off")
NOT_AUDITED: Final = 3


def main(folder: Path) -> int:
    """Audit; returns the exit status."""
    program = folder / "bin" / "pip-audit"
    if not program.exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"]
        if subprocess.run(pip, check=False).returncode:
            print("Not audited: pip-audit cannot be installed here.", file=sys.stderr)
            return NOT_AUDITED
    ran = subprocess.run([str(program), *ARGUMENTS], check=False, capture_output=True, text=True)
    sys.stdout.write(ran.stdout)
    sys.stderr.write(ran.stderr)
    if ran.returncode and not ran.stdout.strip():  # findings are a table there; else it could not ask
        print("Not audited: the advisory database cannot be reached from here.", file=sys.stderr)
        return NOT_AUDITED
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / ".venv-audit")))
