"""### Keep the house in order

Every day, each task by itself; what it did is its XCom:

- *expire_pools*: retrieval pools but the latest versions (setting `keep_pool_versions`), candidates that were rejected,
  and pins of runs that are long over.
- *expire_runs*: staged files of runs that ended, or were given up, `keep_run_days` ago.
- *retry_quarantine*: texts that failed validation are asked for again by the next run, `quarantine_retries` times.
- *analyse_tables*: fresh statistics for PostgreSQL's planner.
- *check_indexes*: fails where an index is missing, invalid or bloated, and says what to do.
"""

from typing import Any

from airflow.sdk import dag, task

from dare_airflow.wiring import DAG_DEFAULTS, SETTINGS, cron, settings


@dag(schedule=cron(SETTINGS.maintain_schedule), tags=["dare"], doc_md=__doc__, **DAG_DEFAULTS)
def maintain() -> None:
    @task
    def expire_pools() -> dict[str, Any]:
        from dare_core.operations import maintenance

        return maintenance.expire_pools(settings())

    @task
    def expire_runs() -> dict[str, Any]:
        from dare_core.operations import maintenance

        return maintenance.expire_runs(settings())

    @task
    def retry_quarantine() -> dict[str, Any]:
        from dare_core.operations import maintenance

        return maintenance.retry_quarantine(settings())

    @task
    def analyse_tables() -> dict[str, Any]:
        from dare_core.operations import maintenance

        return maintenance.analyse_tables(settings())

    @task
    def check_indexes() -> dict[str, Any]:
        from dare_core.operations import maintenance

        return maintenance.check_indexes(settings())

    [expire_pools(), expire_runs(), retry_quarantine(), analyse_tables(), check_indexes()]


maintain()
