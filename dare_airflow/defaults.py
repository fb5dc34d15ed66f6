"""What every DAG of ours has, and which errors of its tasks are worth another try."""

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowTaskTimeout
from pydantic import ValidationError

from dare_airflow.installation import SETTINGS
from dare_core.errors import (
    DareError,
    EndpointError,
    OutOfMemoryError,
    RunInUseError,
    SourceError,
    StorageError,
    WarehouseError,
)

#: Full memory, a full disk, what another server may mend or answer later, and a run that somebody else is at are worth
#: another try, and so is a killed worker, of which no policy is asked. Any other error in the user's words fails at
#: once.
RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule(
            [
                WarehouseError,
                SourceError,
                StorageError,
                EndpointError,
                RunInUseError,
                OutOfMemoryError,
                MemoryError,
            ],
            RetryAction.RETRY,
        ),
        RetryRule([DareError, ValidationError], RetryAction.FAIL, reason="Trying again would not help"),
        # Three times as long would a Spark without executors block its domain, or a hanging server.
        RetryRule([AirflowTaskTimeout], RetryAction.FAIL, reason="It took longer than the settings allow"),
    ]
)

#: How long a task may take: those that run Spark, those that write texts, and all others.
SPARK_TIMEOUT = timedelta(hours=SETTINGS.spark_hours)
GENERATION_TIMEOUT = timedelta(hours=SETTINGS.generation_hours)
TASK_TIMEOUT = timedelta(hours=SETTINGS.task_hours)

DAG_DEFAULTS: dict[str, Any] = {
    "catchup": False,
    "max_active_runs": 1,
    "is_paused_upon_creation": True,
    "default_args": {
        "owner": "dare",
        "retries": 2,
        "execution_timeout": TASK_TIMEOUT,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": RETRY_POLICY,
    },
}
