"""Give what was pulled its groups, and commit it."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.schemas import GONE, PULLED, Kind
from dare_core.sources.spark_submit import submit
from dare_core.stages.ownership import owned
from dare_core.stages.pull import PullWindow, read_window
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.storage.locations import Location
from dare_core.warehouse.entities import Pulled, count_differing, merge_entities, watermark
from dare_core.warehouse.entity_staging import EntityStaging
from dare_core.warehouse.session import open_warehouse


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: give every pulled entity its retrieval-pool group; then commit them, what is gone, and the watermark.

    Spark's executors copy the entities into staging tables, which are merged here by SQL, a stretch at a time. Spark is
    not started when the warehouse holds everything that was pulled.
    """
    run_dir = settings.run_dir(request.run_id)
    window = read_window(run_dir)
    arguments = [
        *("--domain-file", str(settings.config_dir / f"{request.domain}.toml")),
        *("--as-of", window.until.isoformat()),
        *("--pools", str(settings.pool_dir(request.domain, "item").parent)),
        *("--in", str(run_dir / "pulled")),
        *("--out", str(run_dir / "grouped")),
        *("--run", request.run_id),
    ]
    with open_warehouse(settings) as (url, engine):
        differing = any(_differ(engine, request.domain, window, run_dir, kind) for kind in window.kinds)
        summary: dict[str, Any] = submit(settings, "group", arguments, url) if differing else {}
        for kind in window.kinds:
            # Histories that lack an item, since it changed after ``as_of``, are to be read again by the next run.
            complete = kind == "item" or not window.hidden
            pulled = Pulled(request.domain, kind, window.until, _gone(run_dir, kind), complete)
            staging = EntityStaging(request.run_id, kind)
            if not differing:
                staging.drop(engine)  # what a try left that was stopped
            changes = merge_entities(engine, staging, summary.get(kind, 0), pulled)
            summary |= {f"{kind}_changed": changes.changed, f"{kind}_deleted": changes.deleted}
            summary |= {f"{kind}_forgotten": changes.forgotten} if changes.forgotten else {}
    return summary


def _gone(run_dir: Location, kind: Kind) -> Iterator[str]:
    for rows in run_files.read_pieces(run_dir / "pulled" / "gone" / kind, GONE):
        yield from rows["entity_id"].to_pylist()


def _differ(engine: Engine, domain: str, window: PullWindow, run_dir: Location, kind: Kind) -> bool:
    """Whether the warehouse lacks any of the pulled entities."""
    mark = watermark(engine, domain, kind)
    of_the_past = mark is not None and mark > window.until
    batches = run_files.read_pieces(run_dir / "pulled" / kind, PULLED)
    return any(count_differing(engine, rows, of_the_past) for rows in batches)
