"""``dare demo``: the platform end to end on MovieLens, by a real Airflow, told in numbers read from the warehouse.

``refresh_knowledge`` runs twice. The first run has no retrieval pool and drafts nothing; its texts become the pool, by
``rebuild_pools``; the second run writes for other users and items and drafts from it. Run again on the same data
folder, the demo takes the next users and items.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import sqlalchemy as sa
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dare_airflow.client import TaskState
from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.local.processes import exit_on_signals
from dare_airflow.run_names import folder_name
from dare_airflow.runs import RunFailedError
from dare_core.config.settings import Settings
from dare_core.sources.bundled import prepare
from dare_core.warehouse import queries
from dare_core.warehouse.connection import connect
from dare_core.warehouse.server import serving

REFRESH: Final = "refresh_knowledge_movies"
REBUILD: Final = "rebuild_pools_movies"
ITEMS: Final = 48
USERS: Final = 16
MAX_NEW_TOKENS: Final = 96
BASELINE_PROMPTS: Final = 8
ANSWER_ROWS: Final = 10

STAGES: Final = ("pull", "group", "plan", "generate", "load")


@dataclass(frozen=True)
class RunFigures:
    """One run as ``knowledge.generation_run`` and its texts tell it.

    Attributes:
        steps: decode steps, summed over texts; plain decoding takes one for each token.
        seconds: of engines, without loading and compiling.
        relaxed: tokens that were not the model's first choice.
    """

    texts: int
    new_tokens: int
    steps: int
    seconds: float
    relaxed: int

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.new_tokens / self.steps if self.steps else 0.0

    @property
    def relaxed_token_rate(self) -> float:
        return self.relaxed / self.new_tokens if self.new_tokens else 0.0


def run_demo(settings: Settings) -> None:
    """Run the demo and stop what it started, whatever happens.

    Raises:
        DareError: something could not be set up; says what.
        SystemExit: with status 1 when a DAG run failed, after its task and the end of its log were printed.
    """
    console = Console()
    try:
        with exit_on_signals(), serving(settings) as warehouse_url:
            _demonstrate(settings, warehouse_url, console)
    except RunFailedError as error:
        console.print(Text(str(error), style="red"))
        raise SystemExit(1) from None


def _demonstrate(settings: Settings, warehouse_url: str, console: Console) -> None:
    started = time.monotonic()
    engine = connect(warehouse_url)
    try:
        console.print("[bold]1/5[/] Warehouse, MovieLens tables and model")
        prepare(settings, engine)

        console.print("[bold]2/5[/] Airflow: scheduler, DAG processor, API server")
        first, second = (f"demo-{datetime.now(UTC):%Y%m%dT%H%M%S}-{number}" for number in (1, 2))
        with (
            LocalAirflow(settings, warehouse_url, port=0) as airflow,
            airflow.runs.active(REFRESH, REBUILD),
        ):
            console.print(f"[bold]3/5[/] {REFRESH} for {ITEMS} items and {USERS} users, without a pool")
            _refresh(airflow, first, console)
            with _Progress(console, ("build", "publish")) as progress:
                rebuild = airflow.runs.await_triggered(REFRESH, first, REBUILD)
                airflow.runs.wait(REBUILD, rebuild, progress.show)
            console.print(f"[bold]4/5[/] {REFRESH} for as many others, drafting from the pool")
            _refresh(airflow, second, console)

        first, second = (folder_name(REFRESH, run_id) for run_id in (first, second))
        console.print(f"[bold]5/5[/] The same model by plain transformers generate, {BASELINE_PROMPTS} of the prompts")
        baseline = _baseline(settings, engine, second)
        console.print(_summary(settings, engine, first, second, baseline))
        console.print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes; everything is stopped.")
    finally:
        engine.dispose()


def _refresh(airflow: LocalAirflow, run_id: str, console: Console) -> None:
    conf = {"item_limit": ITEMS, "user_limit": USERS, "max_new_tokens": MAX_NEW_TOKENS}
    airflow.api.trigger(REFRESH, conf, run_id)
    with _Progress(console, STAGES) as progress:
        airflow.runs.wait(REFRESH, run_id, progress.show)


def _baseline(settings: Settings, engine: sa.Engine, run_id: str) -> dict[str, RunFigures]:
    from dare_core.engines.plain import baseline

    rows = _rows(
        engine,
        "SELECT prompt_token_ids FROM knowledge.knowledge WHERE run_id = :run_id ORDER BY request_id LIMIT :count",
        run_id=run_id,
        count=BASELINE_PROMPTS,
    )
    if not rows:
        return {}
    timings = baseline(settings, [row.prompt_token_ids for row in rows], MAX_NEW_TOKENS)
    return {
        "generate, one at a time" if size == 1 else f"generate, {size} padded": RunFigures(
            len(rows), timing.tokens, steps=timing.tokens, seconds=timing.seconds, relaxed=0
        )
        for size, timing in timings.items()
    }


def _figures(engine: sa.Engine, run_id: str) -> RunFigures:
    (row,) = _rows(
        engine,
        """
        SELECT r.loaded, r.new_tokens, r.steps, r.seconds,
               (SELECT coalesce(sum(k.relaxed), 0) FROM knowledge.knowledge k WHERE k.run_id = r.run_id) AS relaxed
        FROM knowledge.generation_run r WHERE r.run_id = :run_id
        """,
        run_id=run_id,
    )
    return RunFigures(row.loaded or 0, row.new_tokens or 0, row.steps or 0, row.seconds or 0.0, row.relaxed)


def _summary(settings: Settings, engine: sa.Engine, first: str, second: str, baseline: dict[str, RunFigures]) -> Group:
    figures = Table("", "texts", "tokens", "tokens/s", "tokens/step", "relaxed", title="Writing")
    rows = {"DARE, no pool yet": _figures(engine, first), "DARE, with the pool": _figures(engine, second)} | baseline
    for name, run_figures in rows.items():
        figures.add_row(
            name,
            str(run_figures.texts),
            str(run_figures.new_tokens),
            f"{run_figures.tokens_per_second:.1f}",
            f"{run_figures.tokens_per_step:.2f}",
            f"{run_figures.relaxed_token_rate:.1%}",
        )
    samples = _rows(
        engine,
        """
        SELECT DISTINCT ON (kind) kind, entity_id, text, concat_ws(' ', kind, entity_id, attributes ->> 'title') AS name
        FROM knowledge.knowledge JOIN knowledge.entity USING (domain, kind, entity_id)
        WHERE run_id = :run_id ORDER BY kind, request_id
        """,
        run_id=second,
    )
    texts = [Panel(Text(row.text), title=Text(row.name), title_align="left") for row in samples]
    item = next(({"item": row.entity_id} for row in samples if row.kind == "item"), {})
    answers = [
        _answer(engine, "nearest_items", item),
        _answer(engine, "tokens_per_step_by_group", {"run_id": second}),
    ]
    places = Text(
        f"Data Docs: {settings.data_docs_dir / 'index.html'}\n"
        f"Airflow UI: make ui, then http://127.0.0.1:{settings.airflow_port}"
    )
    return Group(figures, *texts, *answers, places)


def _answer(engine: sa.Engine, name: str, params: dict[str, str]) -> Table:
    result = queries.run(engine, name, params)
    table = Table(*result.columns, title=f"dare warehouse query {name}")
    if len(result.rows) > ANSWER_ROWS:
        table.caption = f"the first {ANSWER_ROWS} of {len(result.rows)} rows"
    for row in result.rows[:ANSWER_ROWS]:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    return table


def _rows(engine: sa.Engine, statement: str, **parameters: object) -> Sequence[sa.Row[Any]]:
    with engine.connect() as connection:
        return connection.execute(sa.text(statement), parameters).all()


class _Progress:
    """The state of each stage: a live table on a terminal, one line per change elsewhere."""

    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        self._console = console
        self._stages = stages
        self._shown: dict[str, str] = {}
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, tasks: Sequence[TaskState]) -> None:
        states = {stage: stage_state([task for task in tasks if task.task_id == stage]) for stage in self._stages}
        elapsed = time.monotonic() - self._started
        if self._live:
            table = Table("stage", "state", caption=f"{elapsed:.0f} s", caption_justify="left")
            for stage, state in states.items():
                table.add_row(stage, state)
            self._live.update(table)
        else:
            for stage, state in states.items():
                if state != self._shown.get(stage, ""):
                    self._console.print(f"{elapsed:5.0f} s  {stage}: {state}")
        self._shown = states


def stage_state(tasks: Sequence[TaskState]) -> str:
    """The state of a stage's tasks in words: ``success``, or ``1/3 success, 1/3 running`` of a mapped one."""
    counts: dict[str, int] = {}
    for task in tasks:
        if task.state is not None:
            counts[task.state] = counts.get(task.state, 0) + 1
    if len(tasks) == 1 or list(counts.values()) == [len(tasks)]:
        return ", ".join(counts)
    return ", ".join(f"{count}/{len(tasks)} {state}" for state, count in counts.items())
