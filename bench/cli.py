"""``dare bench …``."""

import json
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dare_core.cli.options import (
    EngineName,
    Json,
    Model,
    settings_of,
)
from dare_core.cli.terminal import console, result_table, show_figures, stderr
from dare_core.errors import InputError

app = typer.Typer(help="Benchmarks against what one would run instead.", no_args_is_help=True)


class PlatformPart(StrEnum):
    """A part of ``dare bench platform``."""

    no_change = "no_change"
    dag_import = "dag_import"
    kills = "kills"
    shards = "shards"
    airflow_vs_engine = "airflow_vs_engine"


@app.command("load")
def bench_load(
    rows: Annotated[int, typer.Option(min=1000, help="texts with a vector each")] = 200_000,
    repeats: Annotated[int, typer.Option(min=1, help="of each contender; medians are reported")] = 3,
    as_json: Json = False,
) -> None:
    """Rows into the warehouse, against a bare COPY of the same bytes, pandas' to_sql and executemany."""
    from bench.warehouse.load import bench_load as measure

    show_figures("load", measure(settings_of(), rows, repeats, on_progress=stderr.print), as_json)


@app.command("query")
def bench_query(
    rows: Annotated[int, typer.Option(min=1000, help="items with a vector each")] = 200_000,
    interactions: Annotated[int, typer.Option(min=1, help="to join point in time")] = 100_000,
    as_json: Json = False,
) -> None:
    """Nearest neighbours, the point-in-time join, and whether a run's texts are all accounted for."""
    from bench.warehouse.query import bench_query as measure

    show_figures("query", measure(settings_of(), rows, interactions, on_progress=stderr.print), as_json)


@app.command("decode")
def bench_decode(
    contenders: Annotated[
        list[str] | None,
        typer.Option(help="fp32_strict, int8_relaxed, vllm_suffix …; may be given several times; default: all"),
    ] = None,
    batches: Annotated[list[int], typer.Option(min=1, help="sequences at once; may be given several times")] = [  # noqa: B006
        1,
        4,
        16,
        32,
    ],
    prompts: Annotated[int, typer.Option(min=1, help="items to write about")] = 64,
    pool_texts: Annotated[int, typer.Option(min=1, help="texts of other items in the pool")] = 1618,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 96,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each contender; medians are reported")] = 3,
    minutes: Annotated[float, typer.Option(min=0, help="no further repeat that would not end within these")] = 90,
    engine: Annotated[
        EngineName, typer.Option(help="vllm: vLLM with our pools beside vLLM without")
    ] = EngineName.transformers,
    model: Model = None,
    chart: Annotated[Path | None, typer.Option(help="draw the figures into this SVG file")] = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of the engine, transformers, vLLM and llama.cpp, in one run.

    Peers in environments of their own: `make vllm-env bench-arctic bench-llamacpp`.
    """
    from bench.decode import bench_decode as measure
    from bench.decode_prompts import Plan
    from bench.vllm_decode import bench_vllm
    from dare_airflow.local.processes import exit_on_signals

    plan = Plan(prompts, pool_texts, max_new_tokens, tuple(batches), repeats, minutes, tuple(contenders or ()))
    of_vllm = engine is EngineName.vllm
    if (contenders or chart) and of_vllm:
        raise InputError("--contenders and --chart are of our own engine's bench; leave out --engine vllm")
    with exit_on_signals():  # peers end with this process
        result = (bench_vllm if of_vllm else measure)(settings_of(model=model), plan, on_progress=stderr.print)
    if chart:
        from bench.charts import draw_decode

        draw_decode(result, chart)
    if as_json:
        print(json.dumps(result))
        return
    rows = [(name, speed, result["tokens_per_step"].get(name)) for name, speed in result["tokens_per_second"].items()]
    console.print(result_table("medians", ("contender", "tokens/s", "tokens/step"), rows))


@app.command("pool")
def bench_pool(
    tokens: Annotated[int, typer.Option(min=10_000, help="of the pool")] = 10_000_000,
    large_tokens: Annotated[int, typer.Option(min=0, help="of the large pool; 0 leaves it out")] = 100_000_000,
    nights: Annotated[int, typer.Option(min=1, help="incremental builds")] = 100,
    knowledge: Annotated[
        Path | None,
        typer.Option(help="Parquet file with token_ids of real texts; default: ../shared/data, or made"),
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="measure all sizes, and draw them into this SVG file")] = None,
    as_json: Json = False,
) -> None:
    """What a retrieval pool costs to build, keep, open and search."""
    from bench.pool import Plan
    from bench.pool import bench_pool as measure
    from dare_core.config.settings import PROJECT_DIR

    found = PROJECT_DIR.parent / "shared" / "data" / "knowledge_ml100k.parquet"
    knowledge = knowledge or (found if found.exists() else None)
    plan = Plan(tokens, large_tokens, nights, knowledge, sweep=chart is not None)
    result = measure(settings_of(), plan, on_progress=stderr.print)
    if chart:
        from bench.pool_charts import draw_pools

        draw_pools(result, chart)
    show_figures("pool", result, as_json)


@app.command("platform")
def bench_platform(
    only: Annotated[
        list[PlatformPart] | None, typer.Option(help="a part to measure; may be given several times; default: all")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="worked off by a scheduler")] = 10_000,
    entities: Annotated[int, typer.Option(min=1, help="items written about through Airflow and without")] = 640,
    kills: Annotated[int, typer.Option(min=1, help="of a generation task")] = 5,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """What the platform adds to the engine, and whether it loses anything: daily run, scheduler, killed workers."""
    from bench.platform import Size
    from bench.platform import bench_platform as measure

    size = Size(shards, entities, kills)
    with stderr.status("") if stderr.is_terminal else nullcontext() as status:
        say = status.update if status else lambda what: None
        result = measure(settings_of(model=model), [part.value for part in only or ()], size, say)
    show_figures("platform", result, as_json)


@app.command("soak")
def bench_soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="of mixed work")] = 30,
    readers: Annotated[int, typer.Option(min=1, max=150, help="SQL readers at once")] = 50,
    model: Model = None,
    chart: Annotated[Path | None, typer.Option(help="draw what was sampled into this SVG file")] = None,
    as_json: Json = False,
) -> None:
    """Refreshes, pool rebuilds, SQL readers and a second engine, all at once: does anything fail, or grow?

    Exit status 1: something failed, or the two engines' texts differ.
    """
    from bench.soak.chart import draw_soak
    from bench.soak.run import bench_soak as measure

    result = measure(settings_of(model=model), minutes, readers, on_progress=stderr.print)
    if chart:
        draw_soak(result, chart)
    show_figures("soak", result, as_json)
    if not as_json:
        print("\n".join(result["errors"]))
    if result["errors"]:
        raise typer.Exit(1)


@app.command("scale")
def bench_scale(
    users: Annotated[int, typer.Option(min=100, help="of the largest shop; a multiple of 10")] = 200_000,
    fresh: Annotated[bool, typer.Option(help="forget what an earlier call, which was stopped, has done")] = False,
    as_json: Json = False,
) -> None:
    """Whole runs over shops of a tenth, half and all of so many users: seconds and memory by stage. Takes hours.

    Model and encoder are stand-ins. Stop it, and the same command goes on.
    """
    from bench.scale.run import bench_scale as measure

    show_figures("scale", measure(settings_of(), users, fresh, on_progress=stderr.print), as_json)


@app.command("capacity")
def bench_capacity(
    users: Annotated[list[int], typer.Option(min=1, help="how many; may be given several times")] = [  # noqa: B006
        1_000_000,
        10_000_000,
        100_000_000,
    ],
    days: Annotated[float, typer.Option(min=0.01, help="that workers may take for the first fill")] = 7,
    tokens_per_second: Annotated[float, typer.Option(min=0.01, help="of one worker")] = 234,
    tokens_per_text: Annotated[float, typer.Option(min=1)] = 160,
    cost_per_hour: Annotated[float, typer.Option(min=0, help="of one machine, in a currency of your own")] = 0.10,
    as_json: Json = False,
) -> None:
    """What more users take, from what `dare bench scale` measured last. A projection, not a measurement."""
    from bench.scale.capacity import Worker, capacity
    from bench.scale.run import last_result

    result = last_result(settings_of())
    worker = Worker(tokens_per_second, tokens_per_text, cost_per_hour)
    found = [vars(capacity(result, count, worker, days)) for count in users]
    if as_json:
        print(json.dumps(found))
        return
    rows = [(name, *(one[name] for one in found)) for name in found[0]]
    console.print(result_table("capacity", ("what", *(f"{count:,} users" for count in users)), rows[1:]))


@app.command("project")
def bench_project(
    record: Annotated[Path | None, typer.Option(help="what `dare bench decode` recorded")] = None,
    chart: Annotated[Path | None, typer.Option(help="draw the projection into this SVG file")] = None,
) -> None:
    """Project the recorded acceptance to GPUs with a roofline model of a step. Not a measurement."""
    from bench.project import project

    print(json.dumps(project(record or settings_of().data_dir / "bench" / "record", chart)))
