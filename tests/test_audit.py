"""``make audit`` with a pip-audit that answers as the real one does: what was not asked is never called clean."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dare_core.config.settings import PROJECT_DIR

CLEAN = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def audit(folder: Path, answer: str, status: int) -> tuple[int, str]:
    """Status and output of the script with a pip-audit that answers so."""
    program = folder / "bin" / "pip-audit"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nprint({answer!r})\nsys.exit({status})\n")
    program.chmod(0o755)
    script = [sys.executable, str(PROJECT_DIR / "scripts" / "audit.py"), str(folder)]
    ran = subprocess.run(script, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("pins", "status", "said"),
    [
        ([CLEAN], 0, "1 pins audited, 0 weaknesses known"),
        ([CLEAN, WEAK], 1, "b 2: CVE-1, mended in 3"),
        ([CLEAN, UNKNOWN], 3, "Not audited: 1 pins could not be asked about: c (not found)"),
    ],
)
def test_what_is_known_of_each_pin_is_said(tmp_path: Path, pins: list[dict[str, Any]], status: int, said: str) -> None:
    found = audit(tmp_path, json.dumps({"dependencies": pins, "fixes": []}), status)
    assert found[0] == status
    assert said in found[1]


def test_a_database_that_cannot_be_reached_is_no_clean_audit(tmp_path: Path) -> None:
    status, said = audit(tmp_path, "", 1)
    assert status == 3
    assert "Not audited: the advisory database cannot be asked from here" in said
