"""Ask the Python advisory database about every pin of requirements.lock, by pip-audit in an environment of its own.

    python scripts/audit.py [ENVIRONMENT]

Prints what is known against a pin. Exit status: 0, nothing is; 1, something is; 3, the database could not be asked, or
not about every pin.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parent.parent
#: Pins are asked about as they stand: nothing is resolved or installed.
ARGUMENTS: Final = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off")
KNOWN, NOT_AUDITED = 1, 3
#: Pins that a failure names.
_NAMED: Final = 3


def main(folder: Path, lock: Path = PROJECT / "requirements.lock") -> int:
    """Audit a lock file with the pip-audit of an environment, which is made where it is not there."""
    program = folder / "bin" / "pip-audit"
    if not program.exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "pip-audit"], check=False).returncode:
            return _not_audited("pip-audit cannot be installed here")
    command = [str(program), "--requirement", str(lock), *ARGUMENTS]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        pins: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):  # it says why on stderr
        last = ran.stderr.strip().splitlines()[-1:] or [f"pip-audit ended with status {ran.returncode}"]
        return _not_audited(f"the advisory database cannot be asked from here: {last[0]}")
    known = [(pin, found) for pin in pins for found in pin.get("vulns", ())]
    for pin, found in known:
        mended = ", ".join(found["fix_versions"]) or "no release"
        print(f"{pin['name']} {pin['version']}: {found['id']}, mended in {mended}")
    skipped = [f"{pin['name']} ({pin['skip_reason']})" for pin in pins if "skip_reason" in pin]
    print(f"{len(pins) - len(skipped)} pins audited, {len(known)} weaknesses known")
    if skipped:
        return _not_audited(f"{len(skipped)} pins could not be asked about: {'; '.join(skipped[:_NAMED])}")
    return KNOWN if known else 0


def _not_audited(why: str) -> int:
    print(f"Not audited: {why}.", file=sys.stderr)
    return NOT_AUDITED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / ".venv-audit")))
