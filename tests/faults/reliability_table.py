"""Write the table of ``docs/reliability.md`` from the results of the crash matrix and of the kills through Airflow.

python -m tests.faults.reliability_table DIR/results.jsonl …
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from dare_core.config.settings import PROJECT_DIR
from tests.faults.crash_matrix import FAULTS, Try, read_results, table

PAGE: Final = PROJECT_DIR / "docs" / "reliability.md"
#: The tries that the table counts.
TRIES: Final = PROJECT_DIR / "docs" / "reliability" / "tries.jsonl"
BEGIN: Final = "<!-- written by: python -m tests.faults.reliability_table DIR/results.jsonl … -->\n"
END: Final = "<!-- end -->"
_AIRFLOW: Final = "airflow:"


def markdown(tries: Sequence[Try]) -> str:
    """The table."""
    lines = [
        "| fault | times tried | lost | doubled | half-written | again |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, *counts in table(tries):
        lines.append(f"| {_words(name)} | {' | '.join(map(str, counts))} | `{_command(name)}` |")
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    if name.startswith(_AIRFLOW):
        return f"Airflow's task `{name.removeprefix(_AIRFLOW)}` killed (SIGKILL)"
    return FAULTS[name].words


def _command(name: str) -> str:
    return "airflow_kills --times 5" if name.startswith(_AIRFLOW) else f"crash_matrix --only {name}"


def written_between(page: str) -> tuple[str, str, str]:
    """The page before the table, the table, and the page after it."""
    before, begin, rest = page.partition(BEGIN)
    within, end, after = rest.partition(END)
    return before + begin, within, end + after


def main(argv: Sequence[str]) -> None:
    """The program."""
    # Last words name folders of the machine that it was tried on.
    tries = [replace(tried, said="") for path in argv for tried in read_results(Path(path))]
    TRIES.parent.mkdir(exist_ok=True)
    TRIES.write_text("".join(json.dumps(asdict(tried), sort_keys=True) + "\n" for tried in tries), "utf-8")
    before, _, after = written_between(PAGE.read_text("utf-8"))
    PAGE.write_text(before + markdown(tries) + after, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
