"""The tasks of `maintain`, each one function of `dare_core.operations.maintenance`."""

from typing import Any

from airflow.sdk import task

from dare_airflow.installation import settings


@task
def expire_pools() -> dict[str, Any]:
    """Remove pool versions that no run will use again."""
    from dare_core.operations import maintenance

    return maintenance.expire_pools(settings())


@task
def expire_runs() -> dict[str, Any]:
    """Remove the staged files of runs that are long over."""
    from dare_core.operations import maintenance

    return maintenance.expire_runs(settings())


@task
def expire_data_docs() -> dict[str, Any]:
    """Remove Great Expectations' results and pages of runs that are long over."""
    from dare_core.operations import maintenance

    return maintenance.expire_data_docs(settings())


@task
def expire_files() -> dict[str, Any]:
    """Remove texts of evaluations that nobody uses, old logs and old alerts."""
    from dare_core.operations import maintenance

    return maintenance.expire_files(settings())


@task
def retry_quarantine() -> dict[str, Any]:
    """Let the next run ask again for texts that failed validation."""
    from dare_core.operations import maintenance

    return maintenance.retry_quarantine(settings())


@task
def analyse_tables() -> dict[str, Any]:
    """Give PostgreSQL's planner fresh statistics."""
    from dare_core.operations import maintenance

    return maintenance.analyse_tables(settings())


@task
def check_indexes() -> dict[str, Any]:
    """Fail where an index is missing, invalid or bloated."""
    from dare_core.operations import maintenance

    return maintenance.check_indexes(settings())
