"""``dare quarantine …``."""

import json
from datetime import UTC
from typing import Annotated

import typer

from dare_core.cli.options import (
    Json,
    settings_of,
)
from dare_core.cli.terminal import console, harmless, result_table
from dare_core.errors import InputError

app = typer.Typer(help="Texts that failed validation, and their review.", no_args_is_help=True)


@app.command("list")
def quarantine_list(
    domain: Annotated[str | None, typer.Option(help="a file of config/")] = None,
    rule: Annotated[str | None, typer.Option(help="those that broke it")] = None,
    run_id: Annotated[str | None, typer.Option(help="those that this run wrote")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List texts in quarantine, the newest first, with the rules that each broke."""
    from dare_core.warehouse import quarantine
    from dare_core.warehouse.known_domains import require_domain
    from dare_core.warehouse.session import open_warehouse

    settings = settings_of()
    with open_warehouse(settings) as (_, engine):
        if domain is not None:
            require_domain(settings, engine, domain)
        found = quarantine.find(engine, domain=domain, rule=rule, run_id=run_id, limit=limit)
    if as_json:
        print(json.dumps([vars(row) | {"state": row.state} for row in found], default=str, ensure_ascii=False))
        return
    rows = [
        (row.request_id, f"{row.domain} {row.kind} {row.entity_id}", _broken(row.rules), row.state) for row in found
    ]
    console.print(result_table("quarantine", ("request", "about", "broke", "state"), rows))


@app.command("show")
def quarantine_show(request_id: Annotated[str, typer.Argument(help="see `dare quarantine list`")]) -> None:
    """Show a text in quarantine: why, what was asked, and what was written."""
    from dare_core.warehouse import quarantine
    from dare_core.warehouse.session import open_warehouse

    with open_warehouse(settings_of()) as (_, engine):
        found = quarantine.find(engine, [request_id])
        asked = quarantine.prompt(engine, request_id)
    if not found:
        raise InputError(f"not in quarantine: {request_id}; `dare quarantine list` shows what is")
    [row] = found
    by = f" by {row.released_by}" if row.released_by else ""
    when = f", {row.released_at:%Y-%m-%d %H:%M} UTC{by}" if row.released_at else ""
    about = f"{row.domain} {row.kind} {row.entity_id}, run {row.run_id}"
    print(harmless(f"{about}, {row.quarantined_at:%Y-%m-%d %H:%M} UTC"))
    print(harmless(f"{row.state}{when}; broke {_broken(row.rules)}"))
    if asked is not None:
        print(harmless(f"\n--- asked\n{asked}\n--- written\n{row.text}"))


@app.command("release")
def quarantine_release(
    request_id: Annotated[list[str], typer.Argument(help="see `dare quarantine list`; all are released or none")],
    by: Annotated[str | None, typer.Option(help="who reviewed them; default: the user of this machine")] = None,
    as_json: Json = False,
) -> None:
    """Load reviewed texts, with their vectors, as knowledge. Releasing one again changes nothing."""
    import getpass

    from dare_core.knowledge.vectors import vectors
    from dare_core.warehouse import quarantine
    from dare_core.warehouse.session import open_warehouse

    settings, reviewer = settings_of(), by or getpass.getuser()
    with open_warehouse(settings) as (_, engine):
        done = quarantine.release(engine, request_id, reviewer, lambda texts: vectors(settings, engine, texts))
    before = {
        request: {"at": at.astimezone(UTC).isoformat(timespec="seconds"), "by": who}
        for request, (at, who) in done.before.items()
    }
    if as_json:
        print(json.dumps({"released": done.released, "by": reviewer, "released_before": before}))
        return
    for request in done.released:
        print(f"{request} is knowledge now, released by {reviewer}")
    for request, earlier in before.items():
        print(f"{request} was released before, {earlier['at']} by {earlier['by']}; nothing changed")


def _broken(rules: dict[str, str | None]) -> str:
    return ", ".join(f"{rule} {value}" if value else rule for rule, value in sorted(rules.items()))
