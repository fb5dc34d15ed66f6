"""What the DAGs share: assets, the trigger form's fields, retries, the deadline, and the installation's settings."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import (  # type: ignore[attr-defined]  # its stub file leaves deadlines out
    DAG,
    Asset,
    Connection,
    DeadlineAlert,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    SyncCallback,
    get_current_context,
)
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTimetableInvalid
from pydantic import ValidationError

from dare_airflow.deadline import RunQueued
from dare_core.config.domains import Domain, domain_names, load_domain
from dare_core.config.kinds import KINDS
from dare_core.config.settings import WAREHOUSE_CONNECTION, Settings, load_settings
from dare_core.errors import DareError, OutOfMemoryError, SettingError, SourceError, StorageError, WarehouseError

if TYPE_CHECKING:
    from dare_core.stages.request import RunRequest

#: As they are when the file is parsed; tasks read them anew.
SETTINGS = load_settings()

#: The domains that have DAGs.
DOMAINS: list[Domain] = []
#: What is wrong with the files of the others; `domain_errors.py` shows it.
DOMAIN_ERRORS: list[SettingError] = []


def _checked(name: str) -> Domain:
    domain = load_domain(SETTINGS, name)
    try:
        DAG(name, schedule=domain.schedule.refresh).validate()  # type: ignore[no-untyped-call]
    except AirflowTimetableInvalid as error:
        raise SettingError(f"{SETTINGS.config_dir / name}.toml: schedule.refresh: {error}") from None
    return domain


for each in domain_names(SETTINGS):
    try:
        DOMAINS.append(_checked(each))
    except SettingError as broken:
        DOMAIN_ERRORS.append(broken)


def settings() -> Settings:
    """The settings in force; where they name no warehouse, Airflow's connection ``dare_warehouse`` may."""
    found = load_settings()
    if found.warehouse_url is None:
        try:
            connection = Connection.get(WAREHOUSE_CONNECTION)
        except AirflowNotFoundException:
            return found  # the embedded server
        from dare_airflow.setup import warehouse_url

        fields = ("login", "password", "host", "port", "schema", "extra")
        found = load_settings(warehouse_url=warehouse_url({name: getattr(connection, name) for name in fields}))
    return found


def asset(domain: str, what: str) -> Asset:
    """``source`` tables, ``entities``, ``knowledge``, ``features`` or ``pools`` of a domain."""
    return Asset(f"dare://{domain}/{what}", group="dare")


def cron(schedule: str) -> str | None:
    """A schedule of the settings for Airflow."""
    return None if schedule == "none" else schedule


KINDS_PARAM = Param(
    list(KINDS),
    "Whose knowledge",
    type="array",
    items={"enum": list(KINDS)},
    examples=list(KINDS),
    minItems=1,
    uniqueItems=True,
)

#: How Airflow's names of a schedule's runs begin.
_SCHEDULED = "scheduled__"

#: With its offset, which Airflow does not check.
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$"

AS_OF_PARAM = Param(
    None, "Write as of this moment; empty: now", type=["null", "string"], format="date-time", pattern=_TIME
)

#: How texts are decoded; defaults are the installation's.
DECODING_PARAMS = {
    "verification": Param(
        SETTINGS.verification,
        "Strict equals greedy decoding; relaxed is faster",
        type="string",
        enum=["strict", "relaxed"],
    ),
    "top_k": Param(SETTINGS.top_k, "Relaxed: a drafted token is among so many", type="integer", minimum=1),
    "min_prob": Param(SETTINGS.min_prob, "Relaxed: and more probable than this", type="number", minimum=0, maximum=1),
    "max_new_tokens": Param(None, "Empty: as the settings say", type=["null", "integer"], minimum=1),
}


def folder_name(dag_id: str, run_id: str) -> str:
    """Airflow's name of a run as the pipeline takes it, which makes folders of it.

    Airflow calls a run of a schedule by its time alone, so that two domains' runs of midnight are called alike: the DAG
    is named too.
    """
    named = f"{dag_id}__{run_id}" if run_id.startswith(_SCHEDULED) else run_id
    return re.sub(r"[^A-Za-z0-9_.-]", "-", named)


def run_request(domain: str, **asked: Any) -> "RunRequest":
    """What this DAG run asks of the pipeline: ``asked``, and the form's fields that a request has."""
    from dare_core.stages.request import RunRequest

    context = get_current_context()
    fields = {name: value for name, value in context["params"].items() if name in RunRequest.model_fields}
    run_id = folder_name(context["dag"].dag_id, context["run_id"])
    return RunRequest(run_id=run_id, domain=domain, **fields | asked)


#: Full memory, a full disk and what another server may mend are worth another try, and so is a killed worker, of which
#: no policy is asked. Any other error in the user's words fails at once.
RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule([WarehouseError, SourceError, StorageError, OutOfMemoryError, MemoryError], RetryAction.RETRY),
        RetryRule([DareError, ValidationError], RetryAction.FAIL, reason="Trying again would not help"),
    ]
)

DEADLINE = DeadlineAlert(
    reference=RunQueued(),
    interval=timedelta(hours=SETTINGS.deadline_hours),
    callback=SyncCallback("dare_core.operations.alerts.deadline_missed", kwargs={"hours": SETTINGS.deadline_hours}),
    name="dare",
)

#: What every DAG of ours has.
DAG_DEFAULTS: dict[str, Any] = {
    "catchup": False,
    "max_active_runs": 1,
    "is_paused_upon_creation": True,
    "default_args": {
        "owner": "dare",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": RETRY_POLICY,
    },
}
