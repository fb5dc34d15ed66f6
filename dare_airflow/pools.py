"""The tasks of `rebuild_pools`: build candidates, let a person decide where they fall behind, publish."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import TriggerRule, get_current_context, task

from dare_airflow.defaults import SPARK_TIMEOUT
from dare_airflow.installation import settings
from dare_core.config.kinds import Kind

_QUESTION = """Drafts of the new pool would be accepted less than those of the pool in force:

{% for kind, found in ti.xcom_pull(task_ids='build').items() %}
- **{{ kind }}**: {{ found.tokens_per_step }} tokens per step, now {{ found.current_tokens_per_step }}
  (version {{ found.version }}, now {{ found.current }})
{% endfor %}
"""

#: By kind, what :func:`dare_core.stages.pools.build_candidates` says of its candidate.
Candidates = dict[str, dict[str, Any]]


@task(execution_timeout=SPARK_TIMEOUT)
def build(domain: str) -> Candidates:
    """Add what is new to the pools of the kinds whose knowledge was loaded, and measure the candidates."""
    from dare_core.stages import pools

    context = get_current_context()
    events = [event for events in context["triggering_asset_events"].values() for event in events]
    return pools.build_candidates(settings(), domain, kinds_of(events, context["params"]))


def kinds_of(events: Iterable[Any], params: dict[str, Any]) -> list[Kind]:
    """The kinds that loads of knowledge name, each once though several loads waited; without any, the form's."""
    return sorted({kind for event in events for kind in event.extra["kinds"]}) or params["kinds"]


@task.branch
def gate(candidates: Candidates) -> str | list[str]:
    """What follows: a person's approval where any candidate falls behind, else publication, or nothing."""
    if not candidates:
        return []
    return "approve" if any(found["falls"] for found in candidates.values()) else "publish"


def approve(domain: str) -> ApprovalOperator:
    """Ask a person for a week; no answer is a rejection."""
    return ApprovalOperator(
        task_id="approve",
        subject=f"Publish the new pools of {domain}?",
        body=_QUESTION,
        response_timeout=timedelta(days=7),
        execution_timeout=timedelta(days=8),  # waiting counts
        defaults=ApprovalOperator.REJECT,
    )


@task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
def publish(domain: str, candidates: Candidates) -> dict[str, str]:
    """Put the candidates in force."""
    from dare_core.stages import pools

    return pools.publish_candidates(settings(), domain, candidates)
