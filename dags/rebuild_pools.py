"""### Rebuild the retrieval pools from the knowledge in the warehouse

Starts whenever `refresh_knowledge` has loaded texts (asset `dare://knowledge`), for the domain and kinds they are of;
run by hand, for those of the form. The new version of a pool is published in one transaction and serves the next run;
a version that equals the current one changes nothing. Re-running is safe.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Param, dag, task

from dare_core.schemas import KINDS
from dare_core.settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

KNOWLEDGE = Asset("dare://knowledge")

PARAMS = {
    "domain": Param("movies", "A file of config/, without .toml", type="string", pattern="^[a-z][a-z0-9_]{0,62}$"),
    "kinds": Param(
        list(KINDS),
        "Whose pools",
        type="array",
        items={"enum": list(KINDS)},
        examples=list(KINDS),
        minItems=1,
        uniqueItems=True,
    ),
}


def kinds_by_domain(requests: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Several loads may have waited for this run; each pool is rebuilt once."""
    kinds: dict[str, set[str]] = {}
    for request in requests:
        kinds.setdefault(request["domain"], set()).update(request["kinds"])
    return {domain: sorted(of_domain) for domain, of_domain in kinds.items()}


@dag(
    schedule=[KNOWLEDGE],
    max_active_runs=1,
    is_paused_upon_creation=True,
    params=PARAMS,
    default_args={"owner": "dare", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["dare"],
    doc_md=__doc__,
)
def rebuild_pools() -> None:
    @task
    def rebuild(
        *, params: dict[str, Any], triggering_asset_events: "TriggeringAssetEventsAccessor"
    ) -> dict[str, dict[str, Any]]:
        from dare_core import pipeline

        events = [event for events in triggering_asset_events.values() for event in events]
        requests = [{**params, **event.extra} for event in events] or [params]
        return {
            domain: pipeline.rebuild_pools(load_settings(), domain, kinds)
            for domain, kinds in kinds_by_domain(requests).items()
        }

    rebuild()  # type: ignore[call-arg]


rebuild_pools()
