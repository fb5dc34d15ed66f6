"""### Write the knowledge that is missing or out of date

`pull → group → plan → generate (one task per shard) → validate → embed → load`, and a *report* whatever came of it

Spark pulls what changed since the last run and groups it; *plan* picks the users and items without valid knowledge and
packs them into shards; each shard is written by one task in the Airflow pool `gpu`, drafting from the current retrieval
pool; Great Expectations validates the texts; they are embedded and loaded in one transaction. A load updates the asset
`dare://knowledge`, which starts `rebuild_pools`.

Re-running any task is safe: what was written stays, what is missing is added. When nothing is to be written, *plan*
makes no shards, everything after it is skipped, and the run succeeds without updating the asset.

Daily, once unpaused; the setting `refresh_schedule` holds another cron expression, or `none` for runs by hand only.
Defaults of the form come from the installation's settings.
"""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import (
    Asset,
    BaseOperator,
    BaseOperatorLink,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    dag,
    get_current_context,
    task,
    teardown,
)
from airflow.sdk.observability import stats
from pydantic import ValidationError

from dare_core.errors import DareError, SourceError, WarehouseError
from dare_core.schemas import KINDS
from dare_core.settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import OutletEventAccessors
    from airflow.sdk.types import TaskInstanceKey

    from dare_core.pipeline import RunRequest

KNOWLEDGE = Asset("dare://knowledge")

SETTINGS = load_settings()

TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$"  # with its offset, which Airflow does not check

PARAMS = {
    "domain": Param("movies", "A file of config/, without .toml", type="string", pattern="^[a-z][a-z0-9_]{0,62}$"),
    "kinds": Param(
        list(KINDS),
        "Whose knowledge",
        type="array",
        items={"enum": list(KINDS)},
        examples=list(KINDS),
        minItems=1,
        uniqueItems=True,
    ),
    "item_limit": Param(None, "Write for so many items at most", type=["null", "integer"], minimum=1),
    "user_limit": Param(None, "Write for so many users at most", type=["null", "integer"], minimum=1),
    "verification": Param(
        SETTINGS.verification,
        "Strict equals greedy decoding; relaxed is faster",
        type="string",
        enum=["strict", "relaxed"],
    ),
    "top_k": Param(SETTINGS.top_k, "Relaxed: a drafted token is among so many", type="integer", minimum=1),
    "min_prob": Param(SETTINGS.min_prob, "Relaxed: and more probable than this", type="number", minimum=0, maximum=1),
    "max_new_tokens": Param(None, "Empty: as the settings say", type=["null", "integer"], minimum=1),
    "as_of": Param(
        None, "Write as of this moment; empty: now", type=["null", "string"], format="date-time", pattern=TIME
    ),
}

#: What another server may mend is worth another try; any other error in the user's words is not.
RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule([WarehouseError, SourceError], RetryAction.RETRY),
        RetryRule([DareError, ValidationError], RetryAction.FAIL, reason="Trying again would not help"),
    ]
)


def run_request() -> "RunRequest":
    """What this DAG run asks of the pipeline."""
    from dare_core.pipeline import RunRequest

    context = get_current_context()
    return RunRequest(run_id=re.sub(r"[^A-Za-z0-9_.-]", "-", context["run_id"]), **context["params"])


class RunReport(BaseOperatorLink):
    """The button on the task's page that leads to the run's report, which the plugin in plugins/ serves."""

    name = "Run report"

    def get_link(self, operator: BaseOperator, *, ti_key: "TaskInstanceKey") -> str:
        return f"/dare/runs/{quote(run_request().run_id)}/report.html"


#: What the report says of a run in numbers, sent where Airflow's own metrics go, with the domain as tag.
METRICS = (
    "texts",
    "tokens",
    "seconds",
    "tokens_per_step",
    "relaxed_share",
    "quarantined",
    "pool_hits",
    "speedup",
    "cost",
)


@dag(
    schedule=None if SETTINGS.refresh_schedule == "none" else SETTINGS.refresh_schedule,
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params=PARAMS,
    default_args={
        "owner": "dare",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": RETRY_POLICY,
    },
    tags=["dare"],
    doc_md=__doc__,
)
def refresh_knowledge() -> None:
    @task
    def pull() -> dict[str, Any]:
        from dare_core import pipeline

        return pipeline.pull(load_settings(), run_request())

    @task
    def group() -> dict[str, Any]:
        from dare_core import pipeline

        return pipeline.group(load_settings(), run_request())

    @task
    def plan() -> list[dict[str, Any]]:
        from dare_core import pipeline

        return pipeline.plan(load_settings(), run_request())

    @task(pool="gpu")
    def generate(shard: dict[str, Any]) -> dict[str, Any]:
        from dare_core import pipeline

        return pipeline.generate(load_settings(), run_request(), shard)

    @task
    def validate() -> dict[str, Any]:
        from dare_core import pipeline

        return pipeline.validate(load_settings(), run_request())

    @task
    def embed() -> dict[str, Any]:
        from dare_core import pipeline

        return pipeline.embed(load_settings(), run_request())

    @task(outlets=[KNOWLEDGE])
    def load(*, outlet_events: "OutletEventAccessors") -> dict[str, Any]:
        from dare_core import pipeline

        request = run_request()
        summary = pipeline.load(load_settings(), request)
        outlet_events[KNOWLEDGE].extra = {"domain": request.domain, "kinds": summary["kinds"]}
        return summary

    @teardown  # runs however the others ended, and says nothing about the run's success
    @task(retries=0)
    def report() -> dict[str, Any]:
        from dare_core import pipeline

        request = run_request()
        summary = pipeline.report(load_settings(), request)
        for name in METRICS:
            if summary[name] is not None:
                stats.gauge(f"dare.{name}", summary[name], tags={"domain": request.domain})
        return summary

    shards = plan()
    loaded = load()
    pull() >> group() >> shards
    generate.expand(shard=shards) >> validate() >> embed() >> loaded >> (reported := report())  # type: ignore[call-arg]
    reported.operator.operator_extra_links = (RunReport(),)


refresh_knowledge()
