"""How `backfill_knowledge` goes on: each run starts that of the next slice."""

from typing import Any

from airflow.sdk import TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException

from dare_airflow.installation import settings
from dare_airflow.run_request import run_request


@task(trigger_rule=TriggerRule.ALL_DONE)
def next_slice(domain: str) -> None:
    """Start the next run, if this slice came to its end and was not empty; fail and alert where it lost too much."""
    from dare_core.errors import QualityError
    from dare_core.operations.alerts import raise_alert
    from dare_core.stages import order

    context = get_current_context()
    try:
        if not order.slice_ended(settings(), run_request(domain)):
            raise AirflowSkipException("Nothing is missing, or a stage failed before texts were judged")
    except QualityError as error:
        names = {"dag_id": context["dag"].dag_id, "run_id": context["run_id"]}
        raise_alert(settings(), "backfill stopped", **names, reason=str(error))
        raise
    run_id, form = slice_after(context["run_id"], context["params"])
    raise DagRunTriggerException(  # what TriggerDagRunOperator raises; importing it costs a second
        trigger_dag_id=context["dag"].dag_id,
        dag_run_id=run_id,
        conf=form,
        skip_when_already_exists=True,  # where this run is cleared and run again, it has started the next one already
        reset_dag_run=False,
        wait_for_completion=False,
        allowed_states=[],
        failed_states=[],
        poke_interval=0,
        deferrable=False,
    )


def slice_after(run_id: str, form: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and form of the run that follows one: its own, with the next number."""
    number = form["slice"] + 1
    return f"{run_id.partition('__slice-')[0]}__slice-{number}", {**form, "slice": number}
