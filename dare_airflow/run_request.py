"""A DAG run as the pipeline takes it: its name, and what its trigger form asks."""

from typing import TYPE_CHECKING, Any

from airflow.sdk import get_current_context

from dare_airflow.run_names import folder_name

if TYPE_CHECKING:
    from dare_core.stages.request import RunRequest


def run_request(domain: str, **asked: Any) -> "RunRequest":
    """What this DAG run asks of the pipeline: ``asked``, and the form's fields that a request has.

    Decoding values that the form left as they were are those of the settings when the run is planned: a run that was
    begun goes on whatever the settings say by then.
    """
    from dare_core.stages.request import DECODING, RunRequest

    context = get_current_context()
    filled_in = context["dag_run"].conf or {}
    fields = {
        name: value
        for name, value in context["params"].items()
        if name in RunRequest.model_fields and (name in filled_in or name not in DECODING)
    }
    run_id = folder_name(context["dag"].dag_id, context["run_id"])
    return RunRequest(run_id=run_id, domain=domain, **fields | asked)
