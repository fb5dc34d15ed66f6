"""The tasks of `evaluate_features`."""

from typing import Any

from airflow.sdk import task

from dare_airflow.defaults import GENERATION_TIMEOUT
from dare_airflow.installation import SETTINGS, settings
from dare_core.config.settings import GENERATION_POOL


@task(
    pool=GENERATION_POOL,
    queue=SETTINGS.generation_queue,
    executor=SETTINGS.generation_executor,
    execution_timeout=GENERATION_TIMEOUT,
)
def write_texts(domain: str) -> dict[str, Any]:
    """Write the texts that are compared."""
    from dare_core.evaluation import run

    return run.write_texts(settings(), domain)


@task(execution_timeout=GENERATION_TIMEOUT)
def evaluate(domain: str) -> dict[str, Any]:
    """Train the click models with and without them, and store what they reach."""
    from dare_core.evaluation import run

    return run.evaluate(settings(), domain, control=False)
