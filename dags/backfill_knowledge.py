"""### Write knowledge about everything, for the first time

A run writes one slice: the most active users and items without valid knowledge, `user_limit` and `item_limit` of them,
by the stages of `refresh_knowledge`. Then it starts the next run, until nothing is missing. So the most active are
served first, and each slice drafts from a pool of those before.

It may take days, and any run may be stopped. A slice too many of whose texts fail validation is red, and the next one
goes on with others; one that loses more than the setting `max_slice_loss` stops the chain and alerts. After any
other failure the chain stops: clear the failed task to go on with that slice, or trigger the DAG again to plan anew.
What was loaded stays and is not written twice.

Pause `refresh_knowledge_<domain>` meanwhile: its daily run would write all that is missing in one go.
"""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param

from dare_airflow.backfill import next_slice
from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.installation import DOMAINS
from dare_airflow.params import DECODING_PARAMS, KINDS_PARAM
from dare_airflow.stages import write_knowledge
from dare_core.config.domains import Domain

PARAMS = {
    "kinds": KINDS_PARAM,
    "item_limit": Param(10_000, "Items of a slice at most", type="integer", minimum=1),
    "user_limit": Param(10_000, "Users of a slice at most", type="integer", minimum=1),
    **DECODING_PARAMS,
    "slice": Param(1, "Counted by the chain itself; leave it", type="integer", minimum=1),
}


def backfill_knowledge(domain: Domain) -> None:
    """The DAG of one domain."""
    with DAG(
        dag_id=f"backfill_knowledge_{domain.name}",
        schedule=None,
        params=PARAMS,
        tags=["dare", domain.name],
        doc_md=__doc__,
        **DAG_DEFAULTS,
    ):
        loaded = write_knowledge(domain.name, order="active")
        loaded >> next_slice(domain.name)
        loaded >> EmptyOperator(task_id="slice_loaded")  # an end of the graph that is red when a stage failed


for each in DOMAINS:
    backfill_knowledge(each)
