"""### Do the features help?

`write_texts → evaluate`

*write_texts* writes the texts that items and users would have had in service, strictly, relaxed and in int8, as far as
they are not kept from the last time. *evaluate* trains click models on the domain's own interactions with and without
each of them, and stores AUC and LogLoss in `knowledge.evaluation`.

It is a gate: where the newest evaluation of a domain finds relaxed texts worse than strict ones by more than the
setting `relaxed_auc_bound`, *plan* of the next `refresh_knowledge` falls back to strict, and says so in its log.
Likewise it leaves int8 where that changes AUC by more than `int8_auc_bound`.

One DAG for each file of `config/` that has a section `[evaluation]`.
"""

from airflow.sdk import DAG

from dare_airflow.defaults import DAG_DEFAULTS
from dare_airflow.evaluation import evaluate, write_texts
from dare_airflow.installation import DOMAINS, SETTINGS, schedule
from dare_core.config.domains import Domain


def evaluate_features(domain: Domain) -> None:
    """The DAG of one domain."""
    with DAG(
        dag_id=f"evaluate_features_{domain.name}",
        schedule=schedule(SETTINGS.evaluate_schedule),
        tags=["dare", domain.name],
        doc_md=__doc__,
        **DAG_DEFAULTS,
    ):
        write_texts(domain.name) >> evaluate(domain.name)


for each in DOMAINS:
    if each.evaluation is not None:
        evaluate_features(each)
