"""The tables of ``docs/bad_input.md``, which tests hold against what happens."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from dare_core.config.settings import PROJECT_DIR

_PAGE: Final = PROJECT_DIR / "docs" / "bad_input.md"


@dataclass(frozen=True)
class Row:
    """A kind of input, what becomes of it, and what is said; in words, with messages in backticks."""

    kind: str
    outcome: str
    said: str

    def tells(self, message: str) -> bool:
        """Whether the row quotes a message; ``…`` in a quotation stands for any text."""
        quoted = re.findall(r"`([^`]+)`", self.said)
        patterns = [".*".join(map(re.escape, words.split("…"))) for words in quoted]
        return any(re.search(pattern, message, re.DOTALL) for pattern in patterns)


@cache
def rows(section: str) -> dict[str, Row]:
    """The rows of the table under a heading, by their kind of input."""
    _, _, rest = _PAGE.read_text("utf-8").partition(f"\n## {section}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    return {kind: Row(kind, outcome, said) for kind, outcome, said in cells}
