"""Render prompts, write texts, judge and embed them: a task's part of the plan."""

from typing import Any

from dare_core.config.settings import Settings
from dare_core.knowledge import shards
from dare_core.knowledge.worker import work_off
from dare_core.stages.finishing import finish
from dare_core.stages.rendering import render
from dare_core.stages.request import RunRequest


def run(settings: Settings, request: RunRequest, assignment: dict[str, int]) -> dict[str, Any]:
    """Render an assignment's shards, write their texts with one loaded model, and stage what is to be loaded of them.

    See :func:`dare_core.stages.rendering.render`, :func:`dare_core.knowledge.worker.work_off` and
    :func:`dare_core.stages.finishing.finish`. Each goes on where an earlier try was killed.

    Returns:
        Sums over the shards; a part of them may have been written by earlier tries.
    """
    planned = shards.read_plan(settings.run_dir(request.run_id))
    assigned = planned.shards[assignment["first"] : assignment["end"]]
    render(settings, request, planned, assigned)
    manifests = work_off(settings, planned, assigned)
    names = ("requests", "resumed", "texts", "failed", "tokens", "seconds", "load_seconds")
    sums = {name: round(sum(manifest.get(name, 0) for manifest in manifests), 3) for name in names}
    speed = round(sums["tokens"] / sums["seconds"], 2) if sums["seconds"] else None
    finished = finish(settings, planned, assigned)
    sums |= {"refused": sum(each.refused for each in finished), "vectors": sum(each.vectors for each in finished)}
    return {"shards": len(manifests), **sums, "tokens_per_second": speed}
