"""Leases of runs (table ``run_lease``): one process is at a run at a time, and a run is asked one thing.

Times are the database's, so that hosts need no common clock.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Engine, text

from dare_core.errors import InputError, RunInUseError
from dare_core.warehouse.connection import transaction

#: An owner that gives no sign of life for so long has lost the run.
LEASE: Final = timedelta(seconds=60)


def new_owner() -> str:
    """A name for whoever takes a run: host, process and a random part, as threads of one process differ too."""
    return f"{socket.gethostname()} {os.getpid()} {uuid4().hex[:8]}"


def take(engine: Engine, run_id: str, domain: str, params: Mapping[str, Any], owner: str, fixed: Sequence[str]) -> None:
    """Make a run its owner's, and keep what it is asked.

    Args:
        engine: the warehouse.
        run_id: of the run.
        domain: that it is of.
        params: what it is asked, JSON values.
        owner: see :func:`new_owner`.
        fixed: the names of ``params`` that must be what they were when the run was begun.

    Raises:
        InputError: the run is of another domain, or was asked something else.
        RunInUseError: somebody else is at it.
    """
    with transaction(engine) as cursor:
        # A run of an earlier release is known by its domain: what it was asked is taken from now on.
        cursor.execute(
            """
            INSERT INTO knowledge.run_lease (run_id, domain, params, since, expires_at)
            SELECT %(run)s, coalesce(min(domain), %(domain)s), %(params)s, now(), now()
            FROM knowledge.generation_run WHERE run_id = %(run)s
            ON CONFLICT DO NOTHING
            """,
            {"run": run_id, "domain": domain, "params": json.dumps(params)},
        )
        found = cursor.execute(
            "SELECT domain, params, owner, since, expires_at > clock_timestamp() FROM knowledge.run_lease "
            "WHERE run_id = %s FOR UPDATE",
            [run_id],
        ).fetchone()
        assert found is not None
        of_domain, asked, holder, since, lasts = found
        if of_domain != domain:
            raise InputError(f"run {run_id} is of domain {of_domain}, not of {domain}: give this run an id of its own")
        for name in fixed:
            if asked.get(name) != params.get(name):
                raise InputError(
                    f"run {run_id} was begun with {name} {asked.get(name)} and cannot go on with {params.get(name)}: "
                    "ask the same, or give this run an id of its own"
                )
        if holder and lasts and not has_died(holder):
            host, process, _ = holder.split()
            raise RunInUseError(
                f"process {process} on {host} has been at run {run_id} since {since:%Y-%m-%d %H:%M:%S} UTC: "
                "let it end, or give this run an id of its own"
            )
        cursor.execute(
            "UPDATE knowledge.run_lease SET owner = %s, since = clock_timestamp(), "
            "expires_at = clock_timestamp() + %s, params = %s WHERE run_id = %s",
            [owner, LEASE, json.dumps(params), run_id],
        )


def renew(engine: Engine, run_id: str, owner: str) -> bool:
    """A sign of life; whether the run is still its owner's."""
    with engine.begin() as connection:
        renewed = connection.execute(
            text(
                "UPDATE knowledge.run_lease SET expires_at = clock_timestamp() + :lease "
                "WHERE run_id = :run AND owner = :owner"
            ),
            {"lease": LEASE, "run": run_id, "owner": owner},
        )
        return renewed.rowcount == 1


def give_back(engine: Engine, run_id: str, owner: str | None, waits: timedelta = timedelta(0)) -> None:
    """The owner is done, and the run goes on within ``waits`` if at all. None: nobody's run is over."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE knowledge.run_lease SET owner = NULL, expires_at = clock_timestamp() + :waits "
                "WHERE run_id = :run AND owner IS NOT DISTINCT FROM :owner"
            ),
            {"waits": waits, "run": run_id, "owner": owner},
        )


@dataclass(frozen=True)
class UnderWay:
    """A run that somebody is at, or that waits for its next stage.

    Attributes:
        run_id: of the run.
        params: what it was asked; see :func:`take`.
        owner: see :func:`new_owner`; None between two stages.
    """

    run_id: str
    params: dict[str, Any]
    owner: str | None


def under_way(engine: Engine, domain: str | None, waits: timedelta) -> list[UnderWay]:
    """Runs of a domain, or of all, that may write yet; of earlier releases, those begun less than ``waits`` ago."""
    query = text("""
        SELECT run_id, coalesce(l.params, r.params) AS params, l.owner
        FROM knowledge.run_lease AS l FULL JOIN knowledge.generation_run AS r USING (run_id)
        WHERE (CAST(:domain AS text) IS NULL OR coalesce(l.domain, r.domain) = :domain) AND CASE
            WHEN l.run_id IS NULL THEN r.state = 'planned' AND r.started_at > now() - CAST(:waits AS interval)
            ELSE l.expires_at > clock_timestamp() AND (l.owner IS NOT NULL OR coalesce(r.state, 'planned') = 'planned')
        END
        ORDER BY run_id
    """)
    with engine.connect() as connection:
        found = [UnderWay(**row) for row in connection.execute(query, {"domain": domain, "waits": waits}).mappings()]
    return [run for run in found if run.owner is None or not has_died(run.owner)]


def has_died(owner: str) -> bool:
    """Whether an owner was a process of this host that is no more. Of other hosts nobody knows: their leases expire."""
    host, process, _ = owner.split()
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
