"""Give what was pulled its groups, and commit it."""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.schemas import ENTITY, GONE, GROUPED, PULLED, Kind
from dare_core.sources.spark_submit import submit
from dare_core.stages.ownership import owned
from dare_core.stages.pull import PullWindow, read_window
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.entities import Pulled, count_differing, upsert_entities, watermark
from dare_core.warehouse.session import open_warehouse


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: give every pulled entity its retrieval-pool group; then commit them, what is gone, and the watermark.

    Spark is not started when the warehouse holds everything that was pulled.
    """
    run_dir = settings.run_dir(request.run_id)
    window = read_window(run_dir)
    arguments = [
        *("--domain-file", str(settings.config_dir / f"{request.domain}.toml")),
        *("--as-of", window.until.isoformat()),
        *("--pools", str(settings.pool_dir(request.domain, "item").parent)),
        *("--in", str(run_dir / "pulled")),
        *("--out", str(run_dir / "grouped")),
    ]
    with open_warehouse(settings) as (url, engine):
        differing = sum([_differing(engine, request.domain, window, run_dir, kind) for kind in window.kinds])
        summary: dict[str, Any] = submit(settings, "group", arguments, url) if differing else {}
        for kind in window.kinds:
            grouped = run_files.read_table(run_dir / "grouped" / kind, GROUPED) if differing else GROUPED.empty_table()
            entities = grouped.select(ENTITY.names)
            gone = run_files.read_table(run_dir / "pulled" / "gone" / kind, GONE)["entity_id"].to_pylist()
            # Histories that lack an item, since it changed after ``as_of``, are to be read again by the next run.
            complete = kind == "item" or not window.hidden
            seen = Pulled(request.domain, kind, window.until, gone, complete)
            changes = upsert_entities(engine, entities, seen)
            summary |= {f"{kind}_changed": changes.changed, f"{kind}_deleted": changes.deleted}
            summary |= {f"{kind}_forgotten": changes.forgotten} if changes.forgotten else {}
    return summary


def _differing(engine: Engine, domain: str, window: PullWindow, run_dir: Path, kind: Kind) -> int:
    """How many pulled entities the warehouse lacks."""
    mark = watermark(engine, domain, kind)
    pulled = run_files.read_table(run_dir / "pulled" / kind, PULLED)
    return count_differing(engine, pulled, of_the_past=mark is not None and mark > window.until)
