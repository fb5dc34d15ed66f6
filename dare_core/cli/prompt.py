"""``dare prompt …``."""

import json
from typing import Annotated

import typer

from dare_core.cli.options import EntityKind, Json, MaxNewTokens, Model, settings_of
from dare_core.cli.terminal import console, harmless, result_table

app = typer.Typer(help="What the model is asked.", no_args_is_help=True)


@app.callback()
def _prompt() -> None:
    """What the model is asked."""  # a callback keeps the one command's name


@app.command("show")
def prompt_show(
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
    kind: Annotated[EntityKind, typer.Option(help="whom prompts are about")] = EntityKind.item,
    entity: Annotated[list[str] | None, typer.Option(help="id of a user or item in the source; repeatable")] = None,
    sample: Annotated[int, typer.Option(min=1, help="else: so many, and the one with the longest attributes")] = 3,
    model: Model = None,
    max_new_tokens: MaxNewTokens = None,
    as_json: Json = False,
) -> None:
    """Show prompts about some entities of the warehouse, and what prompts and texts about all take. Writes nothing."""
    from dare_core.config.domains import load_domain
    from dare_core.knowledge.preview import preview
    from dare_core.warehouse.session import open_warehouse

    settings = settings_of(model=model, max_new_tokens=max_new_tokens)
    asked_of = load_domain(settings, domain)
    with open_warehouse(settings) as (_, engine):
        found = preview(settings, engine, asked_of, kind.value, sample, entity or ())
    if as_json:
        print(json.dumps(found.figures(), ensure_ascii=False))
        return
    for asked in found.asked:
        dropped = f", without the oldest {asked.dropped_history} of the history" if asked.dropped_history else ""
        print(harmless(f"--- {found.kind} {asked.entity_id}: {asked.refused or f'{asked.tokens} tokens{dropped}'}"))
        print(harmless(asked.text))
    estimate = found.estimate
    rows = [
        ("template", f"{found.version}, {found.origin}"),
        ("hash", found.hash),
        ("tokens of a prompt, mean", found.mean_tokens),
        ("tokens of a prompt, at most", found.room),
        (
            "tokens shared at the front",
            found.facts.shared_tokens if found.shared_tokens is None else found.shared_tokens,
        ),
        (f"{found.kind}s in the warehouse", found.entities),
        ("tokens of all prompts", found.prompt_tokens),
        ("new tokens of all texts", estimate.tokens),
        ("seconds of one engine", estimate.seconds),
        ("cost", estimate.cost),
    ]
    console.print(result_table(f"prompts of {found.domain}", ("figure", "value"), rows))
    print(estimate.basis)
