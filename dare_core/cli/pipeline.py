"""``dare pipeline …``."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

import typer
from pydantic import ValidationError

from dare_core.cli.options import (
    EngineOption,
    EntityKind,
    MaxNewTokens,
    MinProb,
    TopK,
    Verification,
    given,
    settings_of,
)
from dare_core.cli.terminal import result_table, stderr
from dare_core.errors import SettingError

app = typer.Typer(help="The stages of a refresh, without Airflow.", no_args_is_help=True)


class PlanOrder(StrEnum):
    """Who comes first where a run has a limit."""

    spread = "spread"
    active = "active"


@app.command("run")
def pipeline_run(
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
    kind: Annotated[list[EntityKind] | None, typer.Option(help="repeatable; default: both")] = None,
    item_limit: Annotated[int | None, typer.Option(help="items to write at most")] = None,
    user_limit: Annotated[int | None, typer.Option(help="users to write at most")] = None,
    verification: Verification = None,
    top_k: TopK = None,
    min_prob: MinProb = None,
    max_new_tokens: MaxNewTokens = None,
    as_of: Annotated[datetime | None, typer.Option(help="nothing that happened later is seen; UTC")] = None,
    allow_deletions: Annotated[
        bool, typer.Option("--allow-deletions", help="however much is gone from the source, it is meant")
    ] = False,
    order: Annotated[PlanOrder | None, typer.Option(help="who comes first under a limit; active: by events")] = None,
    run_id: Annotated[str | None, typer.Option(help="run again under this id to go on where it stopped")] = None,
    engine: EngineOption = None,
) -> None:
    """Refresh knowledge: pull, group, plan, generate, load; then rebuild the pools."""
    from dare_core.stages.order import run
    from dare_core.stages.request import RunRequest

    settings = settings_of(engine=engine and engine.value)
    asked = {
        "run_id": run_id or f"{datetime.now(UTC):cli-%Y%m%dT%H%M%S}-{uuid4().hex[:8]}",
        "domain": domain,
        "kinds": tuple(kind) if kind else None,
        "item_limit": item_limit,
        "user_limit": user_limit,
        "verification": verification,
        "top_k": top_k,
        "min_prob": min_prob,
        "max_new_tokens": max_new_tokens,
        "as_of": as_of and as_of.replace(tzinfo=UTC),
        "allow_deletions": allow_deletions,
        "order": order and order.value,
    }
    try:
        request = RunRequest.model_validate(given(asked))
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + ".".join(map(str, problem["loc"])).replace("_", "-")
        raise SettingError(f"{option} is {problem['input']!r}: {problem['msg']}") from None
    summary = run(settings, request, on_stage=_show_stage)
    print(json.dumps(summary))


def _show_stage(stage: str, result: Any) -> None:
    if stage != "plan":
        stderr.print(f"{stage}: {result}")
        return
    rows = []
    for kind, funnel in result["funnel"].items():
        skipped = ", ".join(f"{count} {reason}" for reason, count in funnel["skipped"].items())
        rows.append((kind, funnel["seen"], funnel["changed"], funnel["expired"], funnel["requests"], skipped))
    stderr.print(result_table("plan", ("kind", "seen", "changed", "expired", "to write at most", "skipped"), rows))
    expected = result["estimate"]
    seconds = "unknown" if expected["seconds"] is None else f"{expected['seconds']:.0f} s"
    price = "" if expected["cost"] is None else f", cost {expected['cost']:.2f}"
    stderr.print(
        f"at most {result['requests']} texts in {result['shards']} shards, {expected['tokens']} tokens, engine time "
        f"{seconds}{price} ({expected['basis']})"
    )
