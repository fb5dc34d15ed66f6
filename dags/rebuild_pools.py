"""### Rebuild the retrieval pools from the knowledge in the warehouse

`build → (approve) → publish`

Starts whenever knowledge of the domain was loaded (asset `dare://<domain>/knowledge`), for the kinds it was of; run by
hand, for those of the form. *build* adds what is new to the groups that changed and measures the candidate: how many
tokens per step it would give on the newest texts, whose own entities are left out of it, against the version in force.

The **promotion gate**: where that falls by more than the setting `max_acceptance_loss`, *approve* waits for a person
(Required Actions in the UI) for a week, then rejects. Otherwise it is skipped. *publish* puts the candidates in force;
they serve the next run. Rejected candidates are removed by `maintain`. Re-running is safe.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, TriggerRule, task

from dare_airflow.wiring import DAG_DEFAULTS, DOMAINS, KINDS_PARAM, asset, settings
from dare_core.config.domains import Domain
from dare_core.config.kinds import Kind

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

QUESTION = """Drafts of the new pool would be accepted less than those of the pool in force:

{% for kind, found in ti.xcom_pull(task_ids='build').items() %}
- **{{ kind }}**: {{ found.tokens_per_step }} tokens per step, now {{ found.current_tokens_per_step }}
  (version {{ found.version }}, now {{ found.current }})
{% endfor %}
"""


def kinds_of(events: Iterable[Any], params: dict[str, Any]) -> list[Kind]:
    """Several loads may have waited for this run; each kind's pool is rebuilt once."""
    return sorted({kind for event in events for kind in event.extra["kinds"]}) or params["kinds"]


def rebuild_pools(domain: Domain) -> None:
    """The DAG of one domain."""
    with DAG(
        dag_id=f"rebuild_pools_{domain.name}",
        schedule=[asset(domain.name, "knowledge")],
        params={"kinds": KINDS_PARAM},
        tags=["dare", domain.name],
        doc_md=__doc__,
        **DAG_DEFAULTS,
    ):

        @task
        def build(
            *, params: dict[str, Any], triggering_asset_events: "TriggeringAssetEventsAccessor"
        ) -> dict[str, dict[str, Any]]:
            from dare_core.stages import pools

            events = [event for events in triggering_asset_events.values() for event in events]
            return pools.build_candidates(settings(), domain.name, kinds_of(events, params))

        @task.branch
        def gate(candidates: dict[str, dict[str, Any]]) -> str:
            return "approve" if any(found["falls"] for found in candidates.values()) else "publish"

        approve = ApprovalOperator(
            task_id="approve",
            subject=f"Publish the new pools of {domain.name}?",
            body=QUESTION,
            response_timeout=timedelta(days=7),
            defaults=ApprovalOperator.REJECT,
        )

        @task(outlets=[asset(domain.name, "pools")], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
        def publish(candidates: dict[str, dict[str, Any]]) -> dict[str, str]:
            from dare_core.stages import pools

            return pools.publish_candidates(settings(), domain.name, candidates)

        candidates = build()  # type: ignore[call-arg]
        published = publish(candidates)  # type: ignore[arg-type]  # of a task, what stands for its return value
        gate(candidates) >> [approve, published]  # type: ignore[arg-type]
        approve >> published


for each in DOMAINS:
    rebuild_pools(each)
