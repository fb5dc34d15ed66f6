"""### Write knowledge about everything, for the first time

A run writes one slice: the most active users and items without valid knowledge, `user_limit` and `item_limit` of them,
by the stages of `refresh_knowledge`. Then it starts the next run, until nothing is missing. So the most active are
served first, and each slice drafts from a pool of those before.

It may take days, and any run may be stopped. A slice too many of whose texts fail validation is red, and the next one
goes on with others; after any other failure the chain stops: clear the failed task to go on with that slice, or trigger
the DAG again to plan anew. What was loaded stays and is not written twice.

Pause `refresh_knowledge_<domain>` meanwhile: its daily run would write all that is missing in one go.
"""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Context, Param, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException

from dare_airflow.stages import write_knowledge
from dare_airflow.wiring import DAG_DEFAULTS, DECODING_PARAMS, DOMAINS, KINDS_PARAM, run_request, settings
from dare_core.config.domains import Domain

PARAMS = {
    "kinds": KINDS_PARAM,
    "item_limit": Param(10_000, "Items of a slice at most", type="integer", minimum=1),
    "user_limit": Param(10_000, "Users of a slice at most", type="integer", minimum=1),
    **DECODING_PARAMS,
    "slice": Param(1, "Counted by the chain itself; leave it", type="integer", minimum=1),
}


def start_next(context: Context) -> None:
    """Start the run of the next slice; where this one is run again, it has been started already."""
    number = context["params"]["slice"] + 1
    raise DagRunTriggerException(  # what TriggerDagRunOperator raises; importing it costs a second
        trigger_dag_id=context["dag"].dag_id,
        dag_run_id=f"{context['run_id'].partition('__slice-')[0]}__slice-{number}",
        conf={**context["params"], "slice": number},
        skip_when_already_exists=True,
        reset_dag_run=False,
        wait_for_completion=False,
        allowed_states=[],
        failed_states=[],
        poke_interval=0,
        deferrable=False,
    )


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

        @task(trigger_rule=TriggerRule.ALL_DONE)
        def next_slice() -> None:
            """Start the next run, if this slice came to its end and was not empty."""
            from dare_core.stages import order

            if not order.slice_ended(settings(), run_request(domain.name)):
                raise AirflowSkipException("Nothing is missing, or a stage failed before texts were judged")
            start_next(get_current_context())

        loaded = write_knowledge(domain.name, order="active")
        loaded >> next_slice()
        loaded >> EmptyOperator(task_id="slice_loaded")  # an end of the graph that is red when a stage failed


for each in DOMAINS:
    backfill_knowledge(each)
