"""DAG runs by the names that the pipeline has for them; for those who drive Airflow from outside, too."""

import hashlib
import re
from typing import Final

#: Characters of a name at most.
_LONGEST: Final = 200


def folder_name(dag_id: str, run_id: str) -> str:
    """A DAG run's name as the pipeline takes it, which makes folders of it.

    Airflow's names of runs are unique within their DAG alone, so the DAG is named too. Where a character is replaced,
    or the name is cut or could be read in two ways, a hash of all of it follows.
    """
    named = f"{dag_id}__{run_id}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", named)
    if name == named and len(name) <= _LONGEST and "__" not in dag_id:
        return name
    digest = hashlib.sha256(f"{dag_id}/{run_id}".encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - len(digest) - 1]}-{digest}"
