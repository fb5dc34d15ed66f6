"""### Rebuild the retrieval pools from the knowledge in the warehouse

`build → (approve) → publish`

Starts whenever knowledge of the domain was loaded (asset `dare://<domain>/knowledge`), for the kinds it was of; run by
hand, for those of the form. *build* adds what is new to the groups that changed and measures the candidate: how many
tokens per step it would give on the newest texts, whose own entities are left out of it, against the version in force.

The **promotion gate**: where that falls by more than the setting `max_acceptance_loss`, *approve* waits for a person
(Required Actions in the UI) for a week, then rejects. Otherwise it is skipped. *publish* puts the candidates in force;
they serve the next run. Where nothing is new, both are skipped, and the asset `dare://<domain>/pools` is not updated.
Rejected candidates are removed by `maintain`. Re-running is safe.
"""

from airflow.sdk import DAG

from dare_airflow.assets import asset
from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.installation import DOMAINS
from dare_airflow.params import KINDS_PARAM
from dare_airflow.pools import approve, build, gate, publish
from dare_core.config.domains import Domain


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
        candidates = build(domain.name)
        approved = approve(domain.name)
        published = publish.override(outlets=[asset(domain.name, "pools")])(domain.name, candidates)  # type: ignore[arg-type]
        gate(candidates) >> [approved, published]  # type: ignore[arg-type]  # of a task, what stands for its return value
        approved >> published


for each in DOMAINS:
    rebuild_pools(each)
