"""What commands print: tables, figures, progress; nothing of it can steer a terminal."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Whatever is shown may come from a source table, so square brackets in it are no markup.
console = Console(markup=False)
stderr = Console(stderr=True, markup=False)
#: Characters that steer a terminal, or turn the direction of what follows.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def result_table(title: str, columns: tuple[str, ...] | list[str], rows: Any) -> Table:
    """Rows as a table for a terminal."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def show_figures(title: str, figures: dict[str, Any], as_json: bool) -> None:
    """One JSON line of all figures, or a table of the single ones."""
    if as_json:
        print(json.dumps(figures))
        return
    rows = [(name, value) for name, value in figures.items() if not isinstance(value, list | dict)]
    console.print(result_table(title, ("figure", "value"), rows))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else harmless(str(value))


def harmless(text: str) -> str:
    """Text of a source or a model as a terminal may be given it."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing in logs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
