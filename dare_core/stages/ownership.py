"""A run has one owner at a time, and is asked one thing: see :mod:`dare_core.warehouse.leases`.

``dare pipeline run`` owns its run from the first stage to the last. Airflow's stages own it one after another; between
them the run waits for as long as it has until its deadline, and its report ends it. Tasks that generate share it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from threading import Event
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.knowledge.shards import read_plan
from dare_core.stages.request import RunRequest
from dare_core.storage.beside import beside
from dare_core.storage.locations import exists
from dare_core.warehouse import leases
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)

Stage = Callable[[Settings, RunRequest], dict[str, Any]]

#: What a pull fixes of a request; a plan fixes all of it.
_PULLED: Final = ("kinds", "as_of")
_OWNED: Final = ContextVar[frozenset[str]]("runs that are owned", default=frozenset())


def owned(stage: Stage) -> Stage:
    """A stage that owns its run while it runs.

    It raises, before anything is written: InputError, where the run is of another domain or was asked something else;
    RunInUseError, where somebody else is at it.
    """

    @wraps(stage)
    def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
        with owning(settings, request, timedelta(hours=settings.deadline_hours)):
            return stage(settings, request)

    return run


@contextmanager
def owning(settings: Settings, request: RunRequest, waits: timedelta = timedelta(0)) -> Iterator[None]:
    """Own a run until the block ends; then it ``waits`` for its next stage. A block within a block does nothing.

    Raises:
        InputError, RunInUseError: see :func:`owned`.
    """
    run_id = request.run_id
    if run_id in _OWNED.get():
        yield
        return
    load_domain(settings, request.domain)
    fixed = _fixed(settings, request)
    with open_warehouse(settings) as (_, engine):
        owner = leases.new_owner()
        leases.take(engine, run_id, request.domain, request.asked(), owner, fixed)
        token = _OWNED.set(_OWNED.get() | {run_id})
        try:
            with _signs_of_life(engine, run_id, owner):
                yield
        finally:
            _OWNED.reset(token)
            with suppress(DBAPIError):  # it expires
                leases.give_back(engine, run_id, owner, waits)


def end(engine: Engine, request: RunRequest) -> None:
    """Nobody is at the run any more, unless somebody has taken it."""
    if request.run_id not in _OWNED.get():
        leases.give_back(engine, request.run_id, None)


def _fixed(settings: Settings, request: RunRequest) -> tuple[str, ...]:
    """What of a request must be as it was, by how far the run has come."""
    run_dir = settings.run_dir(request.run_id)
    if exists(run_dir / "plan.json"):
        if (domain := read_plan(run_dir).domain) != request.domain:
            raise InputError(
                f"{run_dir} holds a plan of domain {domain}, not of {request.domain}: give this run an id of its own"
            )
        return tuple(request.asked())
    return _PULLED if exists(run_dir / "pull.json") else ()


def _signs_of_life(engine: Engine, run_id: str, owner: str) -> AbstractContextManager[None]:
    def renew(ended: Event) -> None:
        while not ended.wait(leases.LEASE.total_seconds() / 4):
            try:
                if not leases.renew(engine, run_id, owner):
                    log.error("run %s has been taken over by somebody else", run_id)
                    return
            except DBAPIError as error:  # a restart; what lasts longer fails the stage
                log.warning("run %s: no sign of life could be given: %s", run_id, error)

    return beside("lease", renew)
