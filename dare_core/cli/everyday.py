"""Commands about the platform as a whole: see what it did and what it holds."""

import json
import sys
from typing import Annotated

import typer

from dare_core.cli.options import (
    Json,
    settings_of,
)
from dare_core.cli.terminal import console, result_table
from dare_core.errors import InputError

app = typer.Typer()


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="none lists the latest runs")] = None,
    show: Annotated[bool, typer.Option("--open", help="show it in a browser")] = False,
) -> None:
    """Write the report of a run again, from what is known of it by now, and print its path."""
    from dare_core.reports.overview import list_runs
    from dare_core.stages import report
    from dare_core.stages.request import RunRequest

    settings = settings_of()
    runs = list_runs(settings, run_id)
    if run_id is None:
        rows = [(run.run_id, run.domain, run.state, f"{run.started_at:%Y-%m-%d %H:%M}", run.planned) for run in runs]
        console.print(result_table("runs", ("run", "domain", "state", "planned at", "texts"), rows))
        return
    if not runs:
        raise InputError(f"the warehouse knows no run {run_id!r}; `dare report` lists those it knows")
    path = report.run(settings, RunRequest(run_id=run_id, domain=runs[0].domain))["report"]
    print(path)
    if show:
        typer.launch(path)


@app.command()
def digest(json_line: Json = False) -> None:
    """Hash what the warehouse, the pools and the staged files hold; equal work has equal hashes.

    Ends with status 1 where something is neither done nor undone.
    """
    from dare_core.operations import digest as content
    from dare_core.warehouse.session import open_warehouse

    settings = settings_of()
    with open_warehouse(settings) as (_, engine):
        problems = content.unfinished(settings, engine)
        digests = content.digest(settings, engine)
    if json_line:
        print(json.dumps({"parts": {name: vars(part) for name, part in digests.items()}, "unfinished": problems}))
    else:
        rows = [(name, part.rows, part.hash) for name, part in digests.items()]
        console.print(result_table("digest", ("part", "rows", "hash"), rows))
        for problem in problems:
            print(f"unfinished: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
