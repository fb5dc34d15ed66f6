"""The stages from source tables to features as Airflow tasks; `refresh_knowledge` and `backfill_knowledge` chain them.

Each is a module of `dare_core.stages`, which is imported when the task runs.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import XComArg, get_current_context, task, teardown
from airflow.sdk.observability import stats

from dare_airflow.assets import asset
from dare_airflow.defaults import GENERATION_TIMEOUT, SPARK_TIMEOUT
from dare_airflow.installation import SETTINGS, settings
from dare_airflow.run_reports import RunReport
from dare_airflow.run_request import run_request
from dare_core.config.settings import GENERATION_POOL

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import OutletEventAccessors

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


def write_knowledge(domain: str, **asked: Any) -> XComArg:
    """Chain the stages for one domain; returns the last. ``asked`` is what their requests ask besides the form."""
    source, entities, knowledge, features, pools = (
        asset(domain, what) for what in ("source", "entities", "knowledge", "features", "pools")
    )

    @task(inlets=[source], execution_timeout=SPARK_TIMEOUT)
    def pull() -> dict[str, Any]:
        from dare_core.stages import pull

        return pull.run(settings(), run_request(domain, **asked))

    @task(outlets=[entities], execution_timeout=SPARK_TIMEOUT)
    def group() -> dict[str, Any]:
        from dare_core.stages import group

        return group.run(settings(), run_request(domain, **asked))

    @task(inlets=[entities])
    def plan() -> list[dict[str, int]]:
        """Work lists for `generate`; what was planned, and why the rest was skipped, is in XCom `summary`."""
        from dare_core.stages import plan

        request = run_request(domain, **asked)
        get_current_context()["ti"].xcom_push("summary", plan.run(settings(), request))
        return plan.assignments(settings(), request)

    # A killed task has lost seconds of work, so it may be killed often.
    @task(
        inlets=[pools],
        pool=GENERATION_POOL,
        queue=SETTINGS.generation_queue,
        executor=SETTINGS.generation_executor,
        retries=8,
        retry_delay=timedelta(seconds=5),
        execution_timeout=GENERATION_TIMEOUT,
        map_index_template="{{ task.op_kwargs['assignment'] }}",
    )
    def generate(assignment: dict[str, int]) -> dict[str, Any]:
        from dare_core.stages import generate

        return generate.run(settings(), run_request(domain, **asked), assignment)

    @task(outlets=[knowledge, features])
    def load(*, outlet_events: "OutletEventAccessors") -> dict[str, Any]:
        from dare_core.stages import load

        summary = load.run(settings(), run_request(domain, **asked))
        outlet_events[knowledge].extra = {"kinds": summary["kinds"]}
        return summary

    @teardown  # runs however the others ended, and says nothing about the run's success
    @task(retries=0)
    def report() -> dict[str, Any]:
        from dare_core.stages import report

        summary = report.run(settings(), run_request(domain, **asked))
        for name in METRICS:
            if summary[name] is not None:
                stats.gauge(f"dare.{name}", summary[name], tags={"domain": domain})
        return summary

    assignments, loaded = plan(), load()  # type: ignore[call-arg]
    pull() >> group() >> assignments
    generate.expand(assignment=assignments) >> loaded >> (reported := report())
    reported.operator.operator_extra_links = (RunReport(),)
    return loaded
