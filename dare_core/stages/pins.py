"""Pool versions that a run drafts from: pinned when it is planned, so that none is removed before the run has ended."""

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.schemas import Kind
from dare_core.stages.request import RunRequest
from dare_core.warehouse.pools import current_pool, pool_store


def pin_pool(settings: Settings, engine: Engine, request: RunRequest, kind: Kind, tokenizer_hash: str) -> str | None:
    """Pin the version in force of a kind's pool for a run.

    Returns:
        The version; None where there is none, or none of this tokenizer.
    """
    pool = current_pool(engine, request.domain, kind)
    if pool is None or pool["tokenizer_hash"] != tokenizer_hash:
        return None
    version: str = pool["version"]
    pool_store(settings, engine, request.domain, kind).pin(version, request.run_id)
    return version


def release_pools(settings: Settings, engine: Engine, request: RunRequest) -> None:
    """The run needs its pool versions no longer."""
    for kind in request.kinds:
        pool_store(settings, engine, request.domain, kind).unpin(request.run_id)
