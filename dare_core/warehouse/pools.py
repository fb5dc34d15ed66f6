"""Retrieval pools (tables ``pool_version``, ``pool_pin``): which version is in force, and which are in use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from dare_core.config.settings import Settings
from dare_core.errors import PoolError, WarehouseError
from dare_core.pools import PoolStore
from dare_core.pools.manifest import GLOBAL_GROUP, PoolManifest
from dare_core.pools.register import published_meanwhile
from dare_core.schemas import Kind
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import POOL_PIN, POOL_VERSION

#: Shared by those who copy pools, held alone by those who remove versions.
_KEPT: Final = "hashtext('dare pools kept')"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('dare load pool_version'))"


class WarehouseRegister:
    """A :class:`dare_core.pools.register.Register` of the pool of one kind of entity in one domain.

    Args:
        engine: the warehouse.
        domain: the domain's name.
        kind: of entity.
        location: root of the pool store.
    """

    def __init__(self, engine: Engine, domain: str, kind: Kind, location: str) -> None:
        self._engine = engine
        self._key = {"domain": domain, "kind": kind}
        self._location = location
        self._mine = (POOL_VERSION.c.domain == domain) & (POOL_VERSION.c.kind == kind)
        self._my_pins = (POOL_PIN.c.domain == domain) & (POOL_PIN.c.kind == kind)

    def versions(self) -> list[str]:
        """The version in force, then the others, the latest built first."""
        pool = POOL_VERSION
        query = select(pool.c.version).where(self._mine).order_by(pool.c.is_current.desc(), pool.c.created_at.desc())
        with self._engine.connect() as connection:
            versions = list(connection.execute(query).scalars())
            return versions if self._current(connection) else []

    def publish(self, manifest: PoolManifest, expected: str | None) -> None:
        """Make a version the one in force, if the ``expected`` one still is.

        Raises:
            PoolError: it is not: somebody else has published.
            WarehouseError: the row cannot be written.
        """
        pool = POOL_VERSION
        try:
            with self._engine.begin() as connection:
                connection.exec_driver_sql(_LOCK)
                current = self._current(connection)
                if current != expected:
                    raise published_meanwhile(manifest.version, expected, current)
                connection.execute(update(pool).where(self._mine, pool.c.is_current).values(is_current=False))
                known = update(pool).where(self._mine, pool.c.version == manifest.version).values(is_current=True)
                if not connection.execute(known).rowcount:
                    connection.execute(insert(pool).values(self._row(manifest)))
        except DBAPIError as error:
            raise WarehouseError(
                f"pool version {manifest.version} cannot be published: {reason(error)}; the one in force stays"
            ) from error

    def drop(self, version: str) -> None:
        """Forget a version that is no longer there.

        Raises:
            PoolError: a run has pinned it meanwhile.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(delete(POOL_VERSION).where(self._mine, POOL_VERSION.c.version == version))
        except DBAPIError as error:
            raise PoolError(f"pool version {version} is in use and stays: {reason(error)}") from error

    def pins(self) -> dict[str, str]:
        """Versions by the run that uses them."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(POOL_PIN.c.holder, POOL_PIN.c.version).where(self._my_pins))
            return {row.holder: row.version for row in rows}

    def pin(self, version: str, holder: str) -> None:
        """Keep a version until the holder is done with it.

        Raises:
            PoolError: the version has been expired.
        """
        row = {**self._key, "holder": holder, "version": version, "pinned_at": datetime.now(UTC)}
        pinned = upsert(POOL_PIN).values(row)
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    pinned.on_conflict_do_update(
                        index_elements=["domain", "kind", "holder"],
                        set_={"version": pinned.excluded.version, "pinned_at": pinned.excluded.pinned_at},
                    )
                )
        except DBAPIError as error:
            raise PoolError(f"pool version {version} cannot be pinned for {holder}: {reason(error)}") from error

    def unpin(self, holder: str) -> None:
        """The holder is done."""
        with self._engine.begin() as connection:
            connection.execute(delete(POOL_PIN).where(self._my_pins, POOL_PIN.c.holder == holder))

    @contextmanager
    def removing(self, wait: bool = False) -> Iterator[bool]:
        """See :class:`Register`; :func:`keep_versions` is what is waited for."""
        with _holding(self._engine, f"pg_{'' if wait else 'try_'}advisory_xact_lock({_KEPT})") as held:
            yield wait or held

    def _current(self, connection: Connection) -> str | None:
        query = select(POOL_VERSION.c.version).where(self._mine, POOL_VERSION.c.is_current)
        version: str | None = connection.execute(query).scalar_one_or_none()
        return version

    def _row(self, manifest: PoolManifest) -> dict[str, object]:
        return {
            **self._key,
            "version": manifest.version,
            "location": self._location,
            "model": manifest.model,
            "tokenizer_hash": manifest.tokenizer_hash,
            "groups": len([name for name in manifest.groups if name != GLOBAL_GROUP]),
            "texts": manifest.texts,
            "tokens": manifest.tokens,
            "is_current": True,
            "created_at": datetime.now(UTC),
        }


@contextmanager
def keep_versions(engine: Engine) -> Iterator[None]:
    """No version of any pool is removed while the block runs; whoever is removing some ends first."""
    with _holding(engine, f"pg_advisory_xact_lock_shared({_KEPT})"):
        yield


@contextmanager
def _holding(engine: Engine, locked: str) -> Iterator[bool]:
    """A lock for as long as the block runs, or the process lives."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield connection.exec_driver_sql(f"SELECT {locked}").scalar() is True


def pool_store(settings: Settings, engine: Engine, domain: str, kind: Kind) -> PoolStore:
    """The pool of one kind; which version is in force and which are in use, the warehouse says."""
    root = settings.pool_dir(domain, kind)
    register = WarehouseRegister(engine, domain, kind, str(root))
    return PoolStore(root, register, settings.pool_cache_dir, settings.pool_cache_bytes)


def current_pool(engine: Engine, domain: str, kind: str) -> dict[str, Any] | None:
    """The row of POOL_VERSION that new runs draft from; None before the first."""
    query = select(POOL_VERSION).where(
        POOL_VERSION.c.domain == domain, POOL_VERSION.c.kind == kind, POOL_VERSION.c.is_current
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None


def pool_versions(engine: Engine, domain: str, versions: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of POOL_VERSION of some of a domain's versions."""
    query = select(POOL_VERSION).where(POOL_VERSION.c.domain == domain, POOL_VERSION.c.version.in_(versions))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(POOL_VERSION.c.kind)).mappings()]
