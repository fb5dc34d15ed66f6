"""``dare domain …``."""

import json
from typing import Annotated

import typer

from dare_core.cli.options import Json, Model, settings_of
from dare_core.cli.terminal import console, harmless, result_table

app = typer.Typer(help="Domains: their files, tables and prompts.", no_args_is_help=True)


@app.callback()
def _domain() -> None:
    """Domains: their files, tables and prompts."""  # a callback keeps the one command's name


@app.command("check")
def domain_check(
    name: Annotated[str, typer.Argument(help="a file of config/")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Check a domain's file, its tables and columns, and a prompt of each kind. Needs neither Spark nor the weights."""
    from dare_core.operations.domain_check import check_domain

    checked = check_domain(settings_of(model=model), name)
    if as_json:
        print(json.dumps(checked.figures(), ensure_ascii=False))
        return
    console.print(result_table(f"domain {name}", ("checked", "found"), checked.found.items()))
    for found in checked.previews:
        for asked in found.asked:
            said = asked.refused or f"{asked.tokens} tokens"
            print(harmless(f"--- {found.kind} {asked.entity_id}, {found.version}: {said}"))
            print(harmless(asked.text))
