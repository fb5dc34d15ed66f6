"""### Keep the house in order

Every day, each task by itself; what it did is its XCom:

- *expire_pools*: retrieval pools but the latest versions (setting `keep_pool_versions`), candidates that were rejected,
  and pins of runs that are long over.
- *expire_runs*: staged files of runs that ended, or were given up, `keep_run_days` ago.
- *expire_data_docs*: Great Expectations' results and pages, after `keep_data_docs_days`.
- *expire_files*: evaluation texts that no evaluation has used for `keep_evaluation_days`, log files below the data
  folder after `keep_log_days`, alerts after `keep_alert_days`.
- *retry_quarantine*: texts that failed validation are asked for again by the next run, `quarantine_retries` times.
- *analyse_tables*: fresh statistics for PostgreSQL's planner.
- *check_indexes*: fails where an index is missing, invalid or bloated, and says what to do.
"""

from airflow.sdk import DAG

from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.installation import SETTINGS, schedule
from dare_airflow.maintenance import (
    analyse_tables,
    check_indexes,
    expire_data_docs,
    expire_files,
    expire_pools,
    expire_runs,
    retry_quarantine,
)

with DAG(
    dag_id="maintain",
    schedule=schedule(SETTINGS.maintain_schedule),
    tags=["dare"],
    doc_md=__doc__,
    **DAG_DEFAULTS,
):
    [expire_pools(), expire_runs(), expire_data_docs(), expire_files()]
    [retry_quarantine(), analyse_tables(), check_indexes()]
