"""The steps of "Add a domain" in docs/operate.md, taken literally."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dare_core.config.settings import PROJECT_DIR, Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def steps(section: str) -> str:
    """The shell blocks of a section, one behind the other."""
    page = (PROJECT_DIR / "docs" / "operate.md").read_text("utf-8")
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_a_domain_is_added_by_the_commands_that_the_page_gives(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "config").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARE_")} | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "DARE_CONFIG_DIR": str(tmp_path / "config"),
        "DARE_DATA_DIR": str(settings.data_dir),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", steps("Add a domain")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"planned": 5' in done.stdout
    [outcome] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run_id"')]
    assert outcome["loaded"] + outcome["quarantined"] == 5, "so small a model says nothing of a book now and then"
    assert outcome["loaded"] > 0
