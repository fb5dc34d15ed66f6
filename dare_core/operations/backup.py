"""``dare backup`` and ``dare restore``: the warehouse, and the files of its pools, as of one moment.

<place>/warehouse/<schema>.<table>.zst      a table's rows: PostgreSQL's binary COPY, compressed
<place>/pools/<domain>/<kind>/…             files as they lie below a pool's root, group models included
<place>/manifest.json                       what there is, with sizes and checksums; written last

The place is a folder, or a URL that an installed filesystem serves.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version as release_of
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.errors import InputError, PoolError, StorageError
from dare_core.grouping import GroupModelStore
from dare_core.schemas import KINDS
from dare_core.storage.files import Files
from dare_core.storage.locations import exists, files_below, is_folder, location, matching
from dare_core.warehouse.connection import connected
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.migrate import require_known
from dare_core.warehouse.pools import keep_versions, pool_store
from dare_core.warehouse.server import serving
from dare_core.warehouse.snapshot import Contents, TableRows, require_empty, snapshot
from dare_core.warehouse.snapshot import restore as restore_tables
from dare_core.warehouse.upkeep import analyse
from dare_core.warehouse.vectors import index_vectors

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_CHUNK: Final = 1 << 20
_POOL_FILE: Final = re.compile(rf"pools/[\w-]+/(?:{'|'.join(KINDS)})/(?:grouping/)?[a-z]+/\w[\w.]*")
_ROWS_FILE: Final = re.compile(r"warehouse/[^/]+\.zst")


class Kept(BaseModel):
    """A file of a backup: its bytes, and their SHA-256."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What a backup holds.

    Attributes:
        format: of the backup.
        made_at: the moment that it is of, in UTC.
        release: of the platform that made it.
        contents: of the warehouse.
        rows: by table.
        files: by path below the backup.
    """

    format: int
    made_at: datetime
    release: str
    contents: Contents
    rows: dict[str, int]
    files: dict[str, Kept]


def backup(settings: Settings, place: str | Path, on_step: Callable[[str], None] = lambda step: None) -> Manifest:
    """Keep the warehouse, and all registered versions of its pools, in a new place. Runs may go on meanwhile.

    A backup is whole when its manifest is there. What breaks off leaves none, and where it can nothing at all.

    Args:
        settings: in force.
        place: a folder to make, or a URL that nothing lies below; an empty folder may be there.
        on_step: told what begins.

    Raises:
        SettingError: no installed filesystem serves the URL.
        StorageError: the place is not empty, or cannot be written.
        PoolError: a registered version is damaged.
        WarehouseError: the warehouse has no tables, or breaks off.
    """
    target = _files(place)
    at = location(target.location)
    if exists(at) and (not is_folder(at) or (matching(at) if isinstance(at, Path) else files_below(at))):
        raise StorageError(f"{place} is there and not empty; a backup wants a folder of its own: name a new one")
    made = _Made(target)
    with serving(settings) as url, connected(url) as engine:
        try:
            with keep_versions(engine), snapshot(engine) as now:
                moment, contents, rows = datetime.now(UTC), now.contents, dict[str, int]()
                for table in contents.tables:
                    on_step(f"keeping {table}")
                    with made.file(_rows_file(table)) as file, pa.CompressedOutputStream(file, "zstd") as compressed:
                        rows[str(table)] = now.copy_rows(table, compressed.write)
                on_step("keeping pools")
                for files, name, kept_as in _pool_files(settings, engine, contents):
                    _keep(files, name, made, kept_as)
            manifest = Manifest(
                format=_FORMAT, made_at=moment, release=release_of("dare-platform"), contents=contents, rows=rows,
                files=made.files,
            )  # fmt: skip
            made.target.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
        except BaseException:
            made.discard()
            raise
    return manifest


def restore(settings: Settings, place: str | Path, on_step: Callable[[str], None] = lambda step: None) -> Manifest:
    """Put a backup back into an empty installation. What breaks off leaves the warehouse empty, and can be run again.

    Files of pools come first, which mean nothing without the warehouse; then all rows in one transaction, which brings
    them to the schema of this release as well.

    Args:
        settings: in force.
        place: that :func:`backup` wrote to.
        on_step: told what begins.

    Raises:
        SettingError: no installed filesystem serves the URL.
        StorageError: it cannot be reached.
        InputError: it is no whole backup; names the file that is missing or damaged.
        WarehouseError: the warehouse is not empty, or older than the backup's release.
    """
    source = _files(place)
    manifest = _read_manifest(source)
    contents = manifest.contents
    with serving(settings) as url, connected(url) as engine:
        require_known(contents.schema_version, "the backup")
        require_empty(engine, contents)
        on_step("checking the backup")
        for name, kept in manifest.files.items():
            for _ in _checked(source, name, kept):
                pass
        on_step("putting files of pools back")
        for name, kept in manifest.files.items():
            if name.startswith("pools/"):
                domain, kind, below = name.removeprefix("pools/").split("/", 2)
                _put_back(source, name, kept, Files(str(settings.pool_dir(domain, kind))), below)
        on_step("putting rows back")

        def rows_of(table: TableRows) -> Iterator[bytes]:
            with source.reading(_rows_file(table)) as file, pa.CompressedInputStream(file, "zstd") as rows:
                while part := rows.read(_CHUNK):
                    yield part

        owners = {(domain, kind) for domain, kind, _ in (*contents.pools, *contents.group_models)}
        locations = {owner: str(settings.pool_dir(*owner)) for owner in owners}
        restore_tables(engine, contents, rows_of, locations)
        on_step("indexing")
        index_vectors(engine)
        analyse(engine)
    return manifest


def _files(place: str | Path) -> Files:
    found = location(place)
    return Files(str(found.absolute() if isinstance(found, Path) else found))


class _Made:
    """The files of a backup as they are written."""

    def __init__(self, target: Files) -> None:
        self.target, self.files = target, dict[str, Kept]()

    @contextmanager
    def file(self, name: str) -> Iterator["_Counted"]:
        """A file to write; it counts when the block ends well."""
        with self.target.writing(name) as file:
            counted = _Counted(file)
            yield counted
        self.files[name] = Kept(size=counted.size, sha256=counted.digest.hexdigest())

    def discard(self) -> None:
        """Remove what was written, as far as the place can be reached."""
        with suppress(StorageError):
            for name in self.files:
                self.target.remove(name)
        if self.target.local:
            for path in sorted(self.target.local.rglob("*"), reverse=True):
                with suppress(OSError):  # of a file, or of a folder that somebody else has used
                    path.rmdir()


class _Counted(io.RawIOBase):
    """A file that notes size and SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _rows_file(table: TableRows) -> str:
    return f"warehouse/{table}.zst"


def _pool_files(settings: Settings, engine: Engine, contents: Contents) -> Iterator[tuple[Files, str, str]]:
    """The files of every registered version of a pool, and of the group models in force, and what each is kept as."""
    seen = set[str]()
    for domain, kind, version in contents.pools:
        store = pool_store(settings, engine, domain, kind)
        for name in store.files_of(version):
            if (kept_as := f"pools/{domain}/{kind}/{name}") not in seen:
                seen.add(kept_as)
                yield store.files, name, kept_as
    for domain, kind, version in contents.group_models:
        root = str(settings.pool_dir(domain, kind))
        models = GroupModelStore(root, WarehousePointer(engine, domain, kind, root))
        for name in models.files_of(version):
            yield models.files, name, f"pools/{domain}/{kind}/grouping/{name}"


def _keep(files: Files, name: str, made: _Made, kept_as: str) -> None:
    try:
        with files.reading(name) as file, made.file(kept_as) as kept:
            while part := file.read(_CHUNK):
                kept.write(part)
    except FileNotFoundError:
        raise PoolError(
            f"{files.location}/{name} is missing, which a registered version names; `dare pool verify` says more: roll "
            "back, expire or rebuild, and back up again"
        ) from None
    sha256 = Path(name).stem  # of what is named by its content
    if len(sha256) == len(made.files[kept_as].sha256) and sha256 != made.files[kept_as].sha256:
        raise PoolError(f"{files.location}/{name} is damaged: its checksum is wrong; `dare pool verify` says more")


def _read_manifest(source: Files) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(source.read(MANIFEST))
    except FileNotFoundError:
        raise InputError(
            f"{source.location} has no {MANIFEST}: it is no backup, or one that broke off before it was whole"
        ) from None
    except (OSError, ValidationError) as error:
        raise InputError(f"{source.location}/{MANIFEST} is damaged: {' '.join(str(error).split())[:200]}") from None
    if manifest.format != _FORMAT:
        raise InputError(f"{source.location} has format {manifest.format}, not {_FORMAT}: restore with a newer release")
    for name in manifest.files:
        if not (_POOL_FILE.fullmatch(name) or _ROWS_FILE.fullmatch(name)):
            raise InputError(f"{source.location}/{MANIFEST} is damaged: no backup has a file {name!r}")
    for table in manifest.contents.tables:
        if _rows_file(table) not in manifest.files:
            raise InputError(f"{source.location}/{MANIFEST} is damaged: it names no rows of {table}")
    return manifest


def _checked(source: Files, name: str, kept: Kept) -> Iterator[bytes]:
    """A file's bytes; raises at their end where they are not those that were kept."""
    digest, size = hashlib.sha256(), 0
    try:
        with source.reading(name) as file:
            while part := file.read(_CHUNK):
                digest.update(part)
                size += len(part)
                yield part
    except OSError as error:
        raise InputError(
            f"the backup is not whole: {source.location}/{name} cannot be read: {error.strerror or 'it is missing'}"
        ) from None
    if size != kept.size:
        raise InputError(f"the backup is damaged: {source.location}/{name} has {size} bytes instead of {kept.size}")
    if digest.hexdigest() != kept.sha256:
        raise InputError(f"the backup is damaged: the checksum of {source.location}/{name} is wrong")


def _put_back(source: Files, name: str, kept: Kept, files: Files, below: str) -> None:
    with files.writing(below) as file:
        for part in _checked(source, name, kept):
            file.write(part)
