"""A refresh of ``dare bench soak``: all stages of one run, in a process that ends with it.

Run as a program with the run's id, it prints how often the pools were built again because the publisher was quicker.
"""

import json
import sys
from typing import Final

from dare_core.config.settings import Settings, load_settings
from dare_core.errors import PoolError
from dare_core.stages import generate, group, load, plan, pools, pull, report
from dare_core.stages.request import RunRequest

_TRIES: Final = 10


def refresh(settings: Settings, run_id: str) -> int:
    """Run all stages; returns how often pools were built again, as Airflow would retry the task.

    Raises:
        DareError: a stage failed.
    """
    request = RunRequest(run_id=run_id)
    for stage in (pull.run, group.run, plan.run):
        stage(settings, request)
    for assignment in plan.assignments(settings, request):
        generate.run(settings, request, assignment)
    load.run(settings, request)
    for repeated in range(_TRIES):
        try:
            pools.run(settings, request)
        except PoolError as error:
            if "another builder has published" not in str(error) or repeated == _TRIES - 1:
                raise
        else:
            break
    report.run(settings, request)
    return repeated


if __name__ == "__main__":
    print(json.dumps(refresh(load_settings(), sys.argv[1])))
