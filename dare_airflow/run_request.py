"""A DAG run as the pipeline takes it: its name, and what its trigger form asks."""

import re
from typing import TYPE_CHECKING, Any

from airflow.sdk import get_current_context

if TYPE_CHECKING:
    from dare_core.stages.request import RunRequest

#: How Airflow's names of a schedule's runs begin.
_SCHEDULED = "scheduled__"


def run_request(domain: str, **asked: Any) -> "RunRequest":
    """What this DAG run asks of the pipeline: ``asked``, and the form's fields that a request has."""
    from dare_core.stages.request import RunRequest

    context = get_current_context()
    fields = {name: value for name, value in context["params"].items() if name in RunRequest.model_fields}
    run_id = folder_name(context["dag"].dag_id, context["run_id"])
    return RunRequest(run_id=run_id, domain=domain, **fields | asked)


def folder_name(dag_id: str, run_id: str) -> str:
    """Airflow's name of a run as the pipeline takes it, which makes folders of it.

    Airflow calls a run of a schedule by its time alone, so that two domains' runs of midnight are called alike: the DAG
    is named too.
    """
    named = f"{dag_id}__{run_id}" if run_id.startswith(_SCHEDULED) else run_id
    return re.sub(r"[^A-Za-z0-9_.-]", "-", named)
