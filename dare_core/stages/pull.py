"""Pull what changed in the source tables, and what is gone from them; check it."""

import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.quality.findings import Finding
from dare_core.quality.source import check_source
from dare_core.schemas import SOURCE_FIGURE, Kind
from dare_core.sources.spark_submit import submit
from dare_core.sources.tables_there import require_tables
from dare_core.stages.ownership import owned
from dare_core.stages.request import RunRequest
from dare_core.stages.weighing import weigh
from dare_core.storage import run_files
from dare_core.storage.locations import Location, exists
from dare_core.warehouse.connection import clock
from dare_core.warehouse.entities import watermark
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)


class PullWindow(BaseModel):
    """What a run's pull reads, fixed before it reads anything.

    Attributes:
        until: the latest moment seen, inclusive.
        since: the earliest change read anew, inclusive, by kind; a kind without is read whole.
        kinds: those that are read.
        as_read: the run is of now, so that rows which change after ``until`` are taken as they are read.
        hidden: once it was read: interactions that no history shows, since their item changed after ``until``.
    """

    model_config = ConfigDict(frozen=True)

    until: AwareDatetime
    since: dict[Kind, AwareDatetime]
    kinds: tuple[Kind, ...]
    as_read: bool = False
    hidden: int = 0


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: what changed in the source tables since the watermark, up to ``as_of``, and what is gone from them.

    Great Expectations over what was pulled, where there is any; what it warns of is under ``warnings``.

    Raises:
        QualityError: what was pulled cannot be used.
    """
    domain = load_domain(settings, request.domain)
    run_dir = settings.run_dir(request.run_id)
    with open_warehouse(settings) as (url, engine):
        if not exists(_window_path(run_dir)):
            window = _open_window(engine, domain, request)
            run_files.write_json(_window_path(run_dir), window.model_dump_json(indent=1))
        window = read_window(run_dir)
        if not window.kinds:  # as an earlier release fixed it
            log.info("everything up to %s has been pulled before", window.until)
            return dict.fromkeys(request.kinds, 0)
        require_tables(domain, url)
        arguments = [
            *("--domain-file", str(settings.config_dir / f"{domain.name}.toml")),
            *("--kinds", *window.kinds),
            *(part for kind, since in window.since.items() for part in ("--since", f"{kind}={since.isoformat()}")),
            *("--as-of", window.until.isoformat()),
            *(["--as-read"] if window.as_read else []),
            *(["--allow-deletions"] if request.allow_deletions else []),
            *("--out", str(run_dir / "pulled")),
        ]
        summary: dict[str, Any] = submit(settings, "pull", arguments, url)
    window = window.model_copy(update={"hidden": summary.get("hidden_interactions", 0)})
    run_files.write_json(_window_path(run_dir), window.model_dump_json(indent=1))
    found = [*_dropped(domain, summary), *_left_out(window, summary)]
    for kind in window.kinds:
        if summary.get(kind):
            figures = run_files.read_table(run_dir / "pulled" / "figures" / kind, SOURCE_FIGURE)
            found += check_source(figures, domain, kind, settings.data_docs_dir, request.run_id)
    return summary | {"warnings": weigh(settings, request, "source", found, f"what was pulled of {domain.name}")}


def _dropped(domain: Domain, summary: Mapping[str, int]) -> Iterator[Finding]:
    """A warning where many of the new interactions have no user or item."""
    warn = domain.quality.source.dropped_interactions.warn
    dropped, new = summary.get("dropped_interactions", 0), summary.get("new_interactions", 0)
    if warn is not None and dropped and dropped >= warn * new:
        found = f"{dropped} of {new} new ones, bound {warn:g}"
        yield Finding("interactions whose user or item is in no table", "warning", found)


def _left_out(window: PullWindow, summary: Mapping[str, int]) -> Iterator[Finding]:
    """A warning where a run of the past shows less than there was, since what changed later cannot be shown."""
    counts = {f"{kind}s": summary.get(f"{kind}_later", 0) for kind in window.kinds}
    counts["entries of histories"] = window.hidden
    if not window.as_read and any(counts.values()):
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        yield Finding(f"left out, since they changed after {window.until.isoformat()}", "warning", found)


def _open_window(engine: Engine, domain: Domain, request: RunRequest) -> PullWindow:
    """From before the watermark, for what came late, up to ``as_of``; of a moment before the watermark, everything.

    The end is never later than now, by the clock of this machine and by that of the database: a watermark in the future
    would leave out all that changes until then. Where there is one, since a clock was set back, all is read again.
    """
    until = min(request.as_of or datetime.max.replace(tzinfo=UTC), datetime.now(UTC), clock(engine))
    overlap = timedelta(minutes=domain.source.overlap_minutes)
    marks = {kind: watermark(engine, domain.name, kind) for kind in request.kinds}
    since = {kind: mark - overlap for kind, mark in marks.items() if mark is not None and mark <= until}
    as_read = request.as_of is None or request.as_of > until
    return PullWindow(until=until, since=since, kinds=request.kinds, as_read=as_read)


def read_window(run_dir: Location) -> PullWindow:
    """The window of a run.

    Raises:
        InputError: nothing has been pulled, or the file is damaged.
    """
    return run_files.read_json(_window_path(run_dir), PullWindow, "the run has not been pulled")


def _window_path(run_dir: Location) -> Location:
    return run_dir / "pull.json"
