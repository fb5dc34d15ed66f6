"""### Write the knowledge that is missing or out of date

`pull → group → plan → generate (mapped) → load`, and a *report* whatever came of it

Spark pulls what changed since the last run and groups it; *plan* picks the users and items without valid knowledge,
says why it skips the others, and packs the work into shards; tasks in the Airflow pool `gpu` write them, drafting from
the current retrieval pool, judge the texts with Great Expectations and embed those that pass; *load* judges the run as
a whole and loads its texts and vectors. A load updates the asset `dare://<domain>/knowledge`, which starts
`rebuild_pools_<domain>`. *report* writes a page on the run, which its task and the menu (Browse, Run reports) lead to.

Re-running any task is safe: what was written stays, what is missing is added. When nothing is to be written, *plan*
makes no shards, everything after it is skipped, and the run succeeds without updating the asset.

One DAG for each file of `config/`. Once unpaused it follows the schedule of that file (`[schedule] refresh`), else the
setting `refresh_schedule`; defaults of the form come from the installation's settings.
"""

from airflow.sdk import DAG, Param

from dare_airflow.deadline import within
from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.installation import DOMAINS, SETTINGS, refresh_schedule
from dare_airflow.params import ALLOW_DELETIONS_PARAM, AS_OF_PARAM, DECODING_PARAMS, KINDS_PARAM
from dare_airflow.stages import write_knowledge
from dare_core.config.domains import Domain

PARAMS = {
    "kinds": KINDS_PARAM,
    "item_limit": Param(None, "Write for so many items at most", type=["null", "integer"], minimum=1),
    "user_limit": Param(None, "Write for so many users at most", type=["null", "integer"], minimum=1),
    **DECODING_PARAMS,
    "as_of": AS_OF_PARAM,
    "allow_deletions": ALLOW_DELETIONS_PARAM,
}


def refresh_knowledge(domain: Domain) -> None:
    """The DAG of one domain."""
    with DAG(
        dag_id=f"refresh_knowledge_{domain.name}",
        schedule=refresh_schedule(domain),
        params=PARAMS,
        deadline=within(SETTINGS.deadline_hours),
        tags=["dare", domain.name],
        doc_md=__doc__,
        **DAG_DEFAULTS,
    ):
        write_knowledge(domain.name)


for each in DOMAINS:
    refresh_knowledge(each)
