"""Commands about knowledge itself: write it, see whether it helps, compare it, forget it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    SampleDomain,
    TopK,
    Verification,
    settings_of,
)
from dare_core.cli.pool import pool_store_at
from dare_core.cli.terminal import console, progress, result_table, stderr
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.storage.atomic import require_writable

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
        root, pool_version = store.root, pool_version or store.current()
    with progress("writing") as on_progress:
        summary = write(settings, prompts, out, root, pool_version, on_progress)
    print(json.dumps(summary))
    if summary["failed"] and not summary["texts"]:
        stderr.print(
            f"dare: every prompt failed, {summary['failed']} of {summary['failed']}; column error of {out} says why"
        )
        raise typer.Exit(1)


@app.command()
def evaluate(
    domain: Annotated[str, typer.Option(help="a file of config/ with a section [evaluation]")] = "movies",
    seeds: Annotated[int, typer.Option(min=2, help="trainings of each click model on each arm")] = 20,
    entities: Annotated[int, typer.Option(min=2, help="items and users that texts are written about")] = 360,
    chart: Annotated[Path | None, typer.Option(help="draw the differences into this SVG or PNG file")] = None,
    as_json: Json = False,
) -> None:
    """Measure whether the features help: click models with and without knowledge, strict and relaxed."""
    from dare_core.evaluation import run

    if chart is not None:
        require_writable(chart)
        if chart.suffix not in (".svg", ".png"):
            raise InputError(f"--chart {chart}: its name must end in .svg or .png")
    with _evaluated(domain) as settings, _steps() as on_progress:
        result = run.evaluate(settings, domain, seeds, entities, on_progress)
    if chart is not None:
        from dare_core.reports.evaluation_charts import draw_evaluation

        draw_evaluation(result, chart)
    if as_json:
        print(json.dumps(result))
        return
    for model, arms in result["click_models"].items():
        rows = [
            (
                run.ARM_LABELS[arm],
                f"{of_arm['auc']:.4f}",
                f"{of_arm['log_loss']:.4f}",
                _interval(of_arm.get("auc_minus_none")),
                _interval(of_arm.get("auc_minus_strict")),
            )
            for arm, of_arm in arms.items()
        ]
        title = f"{model}, {seeds} seeds, 95% intervals of paired differences"
        console.print(result_table(title, ("arm", "AUC", "LogLoss", "AUC over none", "AUC over strict"), rows))
    made = result["generated"]
    console.print(f"{made['texts']} texts of {made['tokens']} tokens had to be written; the others were kept.")


@app.command("compare-texts")
def compare_texts(
    domain: Annotated[str, typer.Option(help="a file of config/ with a section [evaluation]")] = "movies",
    entities: Annotated[int, typer.Option(min=2, help="as `dare evaluate` was told")] = 360,
    html: Annotated[Path | None, typer.Option(help="write a page with plots and samples")] = None,
    as_json: Json = False,
) -> None:
    """Compare relaxed texts with strict ones of the same prompts, of those that `dare evaluate` wrote."""
    from dare_core.evaluation import run

    if html is not None:
        require_writable(html)
    with _evaluated(domain) as settings:
        figures, compared = run.compare_texts(settings, domain, entities)
    if html is not None:
        from dare_core.reports.comparison import write_comparison

        write_comparison(html, domain, figures, compared)
    if as_json:
        print(json.dumps(figures))
        return
    for name, arms in figures.items():
        columns = ("arm", *next(iter(arms.values())))
        rows = [(run.ARM_LABELS[arm], *of_arm.values()) for arm, of_arm in arms.items()]
        console.print(result_table(name, columns, rows))


@app.command()
def forget(
    kind: Annotated[EntityKind, typer.Option(help="what the ids are of")],
    entity: Annotated[list[str], typer.Option(help="id of a user or item in the source; repeatable")],
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask first")] = False,
    as_json: Json = False,
) -> None:
    """Remove users or items from everything the platform keeps, and search all of it for them. There is no way back.

    Exit status 1: something was found all the same; it says where.
    """
    from dare_core.operations.forgetting import forget as forget_entities
    from dare_core.operations.forgetting.traces import Entities

    who = Entities(domain, kind.value, tuple(dict.fromkeys(entity)))
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


@contextmanager
def _evaluated(domain: str) -> Iterator[Settings]:
    """Settings, with the warehouse served; films that are not there yet are imported, into the embedded one alone."""
    from dare_core.sources.bundled import prepare
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    settings = settings_of()
    load_domain(settings, domain)
    with serving(settings) as url:
        if settings.warehouse_url is None and domain == SampleDomain.movies:
            prepare(settings, connect(url))
        yield settings


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error for each step that begins, and how far it is on a terminal."""
    with progress("evaluating") as on_progress:
        last = ""

        def told(what: str, done: int, wanted: int) -> None:
            nonlocal last
            if what != last:
                stderr.print(f"{what}: {wanted}")
                last = what
            on_progress(done, wanted)

        yield told


def _interval(values: list[float] | None) -> str:
    return "" if values is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*values)
