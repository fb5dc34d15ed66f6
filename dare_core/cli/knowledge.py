"""Commands about knowledge itself: write it, see whether it helps, compare it, forget it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dare_core.cli.options import (
    EngineOption,
    EntityKind,
    Json,
    MaxNewTokens,
    MinProb,
    Model,
    TopK,
    Verification,
    settings_of,
)
from dare_core.cli.pool import pool_store_at
from dare_core.cli.terminal import console, progress, result_table, stderr
from dare_core.errors import InputError

app = typer.Typer()


@app.command()
def generate(
    prompts: Annotated[Path, typer.Option(help='JSON lines: {"id", "group", "prompt"} or "prompt_token_ids"')],
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    pool: Annotated[
        str | None, typer.Option(help="a pool of the pipeline, such as movies/item, or the root of a store")
    ] = None,
    pool_version: Annotated[str | None, typer.Option(help="a version of it; default: its current one")] = None,
    model: Model = None,
    verification: Verification = None,
    top_k: TopK = None,
    min_prob: MinProb = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: Annotated[int | None, typer.Option(help="sequences decoded at once")] = None,
    engine: EngineOption = None,
) -> None:
    """Write texts for a file of prompts; prints one JSON line of figures last.

    Exit status 1: every prompt failed; the file says why.
    """
    from dare_core.knowledge.prompt_file import generate as write

    settings = settings_of(
        model=model,
        verification=verification and verification.value,
        top_k=top_k,
        min_prob=min_prob,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        engine=engine and engine.value,
    )
    root = None
    if pool is not None:
        store = pool_store_at(pool)  # of a pool of the pipeline the warehouse knows which version is in force
        root, pool_version = store.location, pool_version or store.current()
    with progress("writing") as on_progress:
        summary = write(settings, prompts, out, root, pool_version, on_progress)
    print(json.dumps(summary))
    if summary["failed"] and not summary["texts"]:
        stderr.print(
            f"dare: every prompt failed, {summary['failed']} of {summary['failed']}; column error of {out} says why"
        )
        raise typer.Exit(1)


@app.command()
def forget(
    kind: Annotated[EntityKind, typer.Option(help="what the ids are of")],
    entity: Annotated[list[str] | None, typer.Option(help="id of a user or item in the source; repeatable")] = None,
    file: Annotated[Path | None, typer.Option(help="ids in a text file, one a line, beside those of --entity")] = None,
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask first")] = False,
    as_json: Json = False,
) -> None:
    """Remove users or items from everything the platform keeps, and search all of it for them. There is no way back.

    Exit status 1: something was found all the same; it says where.
    """
    from dare_core.operations.forgetting import forget as forget_entities
    from dare_core.operations.forgetting.traces import Entities

    ids = dict.fromkeys([*(entity or ()), *(_ids_of(file) if file else ())])
    if not ids:
        raise InputError("name whom to forget: --entity ID, as often as you like, or --file FILE with an id a line")
    who = Entities(domain, kind.value, tuple(ids))
    if not yes and not typer.confirm(f"Remove {who} for good: texts, vectors, pools, staged files, reports?", err=True):
        raise InputError("nothing was removed")
    done = forget_entities(settings_of(), who, on_step=lambda step: stderr.print(f"{step} …"))
    if as_json:
        print(json.dumps(vars(done), ensure_ascii=False))
    else:
        console.print(result_table(f"removed of {who}", ("rows of", "count"), done.rows.items()))
        print(
            f"{len(done.pool_versions)} pool versions and {len(done.group_models)} group models removed, "
            f"{len(done.files)} files cleaned"
        )
        print(
            f"searched {done.searched_rows} rows of {done.tables} tables in {done.columns} columns, "
            f"{done.searched_files} files of {done.searched_bytes} bytes and {done.searched_segments} pool segments: "
            f"found {len(done.found)}"
        )
        for where in done.found:
            print(f"still there: {where}")
        for what in done.out_of_reach:
            print(f"out of reach: {what}")
    if done.found:
        raise typer.Exit(1)


def _ids_of(file: Path) -> list[str]:
    """The lines of a file but empty ones, without the space around them."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return [line for line in lines if line]
