"""### Keep the house in order

Every day, each task by itself; what it did is its XCom:

- *expire_pools*: retrieval pools but the latest versions (setting `keep_pool_versions`), candidates that were rejected,
  and pins of runs that are long over.
- *expire_runs*: staged files of runs that ended, or were given up, `keep_run_days` ago.
- *retry_quarantine*: texts that failed validation are asked for again by the next run, `quarantine_retries` times.
- *analyse_tables*: fresh statistics for PostgreSQL's planner.
- *check_indexes*: fails where an index is missing, invalid or bloated, and says what to do.
"""

from airflow.sdk import DAG

from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.installation import SETTINGS, schedule
from dare_airflow.maintenance import analyse_tables, check_indexes, expire_pools, expire_runs, retry_quarantine

with DAG(
    dag_id="maintain",
    schedule=schedule(SETTINGS.maintain_schedule),
    tags=["dare"],
    doc_md=__doc__,
    **DAG_DEFAULTS,
):
    [expire_pools(), expire_runs(), retry_quarantine(), analyse_tables(), check_indexes()]
