"""What every DAG of ours has, and which errors of its tasks are worth another try."""

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from pydantic import ValidationError

from dare_core.errors import DareError, OutOfMemoryError, RunInUseError, SourceError, StorageError, WarehouseError

#: Full memory, a full disk, what another server may mend and a run that somebody else is at are worth another try, and
#: so is a killed worker, of which no policy is asked. Any other error in the user's words fails at once.
RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule(
            [WarehouseError, SourceError, StorageError, RunInUseError, OutOfMemoryError, MemoryError], RetryAction.RETRY
        ),
        RetryRule([DareError, ValidationError], RetryAction.FAIL, reason="Trying again would not help"),
    ]
)

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
