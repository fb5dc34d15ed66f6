"""Programs that import Airflow, in processes of their own: its import sets up logging and a database."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_airflow(program: str, home: Path, *arguments: str, **variables: str) -> Any:
    """What a program prints as JSON on its last line.

    Args:
        program: in Python.
        home: ``AIRFLOW_HOME``, and the folder it runs in.
        arguments: its ``sys.argv[1:]``.
        variables: of its environment, which has no others that begin with ``AIRFLOW`` or ``DARE_``.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "DARE_"))}
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **variables},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])
