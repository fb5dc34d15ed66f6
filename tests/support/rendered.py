"""What a planned run asks, without a model: its shards rendered, as its generation tasks would begin."""

from typing import Any

from dare_core.config.settings import Settings
from dare_core.knowledge import shards
from dare_core.stages.rendering import render
from dare_core.stages.request import RunRequest


def requests_of(settings: Settings, request: RunRequest) -> list[dict[str, Any]]:
    """Rows of REQUEST, in the order of the run's shards."""
    run_dir = settings.run_dir(request.run_id)
    plan = shards.read_plan(run_dir)
    render(settings, request, plan, plan.shards)
    return [row for shard in plan.shards for row in shards.read_requests(run_dir, shard.name).to_pylist()]
