"""A refresh of ``dare bench soak``: all stages of one run, in a process that ends with it.

Run as a program with the run's id, it prints how often the pools were built again because the publisher was quicker.
"""

import json
import sys
from typing import Final

from dare_core.config.settings import Settings, load_settings
from dare_core.errors import PoolError
from dare_core.stages import pipeline

_TRIES: Final = 10


def refresh(settings: Settings, run_id: str) -> int:
    """Run all stages; returns how often pools were built again, as Airflow would retry the task.

    Raises:
        DareError: a stage failed.
    """
    request = pipeline.RunRequest(run_id=run_id)
    for stage in (pipeline.pull, pipeline.group, pipeline.plan):
        stage(settings, request)
    for assignment in pipeline.assignments(settings, request):
        pipeline.generate(settings, request, assignment)
    for stage in (pipeline.validate, pipeline.embed, pipeline.load):
        stage(settings, request)
    for repeated in range(_TRIES):
        try:
            pipeline.rebuild_pools(settings, request.domain)
        except PoolError as error:
            if "another builder has published" not in str(error) or repeated == _TRIES - 1:
                raise
        else:
            break
    pipeline.report(settings, request)
    return repeated


if __name__ == "__main__":
    print(json.dumps(refresh(load_settings(), sys.argv[1])))
