"""Fields of the trigger form that several DAGs have."""

from airflow.sdk import Param

from dare_airflow.installation import SETTINGS
from dare_core.config.kinds import KINDS

KINDS_PARAM = Param(
    list(KINDS),
    "Whose knowledge",
    type="array",
    items={"enum": list(KINDS)},
    examples=list(KINDS),
    minItems=1,
    uniqueItems=True,
)

#: With its offset, which Airflow does not check.
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$"

AS_OF_PARAM = Param(
    None, "Write as of this moment; empty: now", type=["null", "string"], format="date-time", pattern=_TIME
)

ALLOW_DELETIONS_PARAM = Param(False, "However much is gone from the source, it is meant", type="boolean")

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
