"""``dare pool …``."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dare_core.cli.options import (
    Json,
    Model,
    held,
    settings_of,
)
from dare_core.cli.terminal import console, result_table
from dare_core.config.settings import Settings, load_settings
from dare_core.schemas import KINDS, Kind
from dare_core.storage.atomic import require_writable
from dare_core.storage.locations import Location, is_folder, location

if TYPE_CHECKING:
    import pyarrow as pa

    from dare_core.pools import PoolStore

#: What a domain may be called, in a pool's short name.
_DOMAIN: Final = re.compile(r"\w[\w-]*")

app = typer.Typer(help="Retrieval pools that drafts come from.", no_args_is_help=True)

PoolRoot = Annotated[
    str, typer.Argument(help="a pool of the pipeline, such as movies/item, or the root of a store: a folder or a URL")
]
PoolVersion = Annotated[str | None, typer.Option(help="default: its current one")]
Knowledge = Annotated[
    Path, typer.Option(help="Parquet file with columns group and token_ids; entity_id and available_at where known")
]
GroupBytes = Annotated[int | None, typer.Option(help="bytes that a group may take; the least useful texts go")]
MaxAgeDays = Annotated[int | None, typer.Option(help="texts written longer ago go")]


@app.command("build")
def pool_build(
    knowledge: Knowledge,
    out: Annotated[str, typer.Option(help="root of the pool store: a folder or a URL")],
    model: Model = None,
    group_bytes: GroupBytes = None,
    max_age_days: MaxAgeDays = None,
    as_json: Json = False,
) -> None:
    """Build a pool version from texts and make it the current one."""
    from dare_core.pools import Limits, PoolBuilder

    texts, facts = _pool_texts(knowledge, model)
    manifest = PoolBuilder(pool_store_at(out), *facts, limits=Limits(group_bytes, max_age_days)).build(texts)
    _show_pool(out, manifest.version, as_json)


@app.command("add")
def pool_add(
    pool: PoolRoot,
    knowledge: Knowledge,
    model: Model = None,
    group_bytes: GroupBytes = None,
    max_age_days: MaxAgeDays = None,
    as_json: Json = False,
) -> None:
    """Add texts to the current version, at the cost of what is new, and make the result the current one."""
    from dare_core.pools import Limits, PoolBuilder

    texts, facts = _pool_texts(knowledge, model)
    manifest = PoolBuilder(pool_store_at(pool), *facts, limits=Limits(group_bytes, max_age_days)).add(texts)
    _show_pool(pool, manifest.version, as_json)


@app.command("inspect")
def pool_inspect(pool: PoolRoot, pool_version: PoolVersion = None, as_json: Json = False) -> None:
    """Show what a pool version holds, and which versions there are."""
    _show_pool(pool, pool_version, as_json)


@app.command("verify")
def pool_verify(pool: PoolRoot, pool_version: PoolVersion = None, as_json: Json = False) -> None:
    """Read every byte of a pool version and check it; a damaged file is named, with exit status 2."""
    store = pool_store_at(pool)
    manifest = store.manifest(pool_version)
    store.check(manifest, thoroughly=True)
    facts = {
        "version": manifest.version,
        "segments": sum(len(part.segments) for part in manifest.groups.values()),
        "bytes": manifest.size,
    }
    print(
        json.dumps(facts)
        if as_json
        else "version {version} is whole: {segments} segments, {bytes} bytes".format(**facts)
    )


@app.command("diff")
def pool_diff(
    pool: PoolRoot,
    old: Annotated[str | None, typer.Option(help="default: the version before the current one")] = None,
    new: Annotated[str | None, typer.Option(help="default: the current one")] = None,
    as_json: Json = False,
) -> None:
    """Count the texts that one version has and another has not, by group."""
    from dare_core.pools.reader import diff

    store = pool_store_at(pool)
    new = new or store.current()
    old = old or store.version_before(new)
    found = diff(store, old, new)
    if as_json:
        print(json.dumps({"old": old, "new": new, "added": found.added, "removed": found.removed}, ensure_ascii=False))
        return
    groups = sorted({*found.added, *found.removed})
    rows = [(group, found.added.get(group, 0), found.removed.get(group, 0)) for group in groups]
    console.print(result_table(f"{old} → {new}", ("group", "texts added", "removed"), rows))


@app.command("rollback")
def pool_rollback(
    pool: PoolRoot,
    pool_version: Annotated[str | None, typer.Option(help="default: the version before the current one")] = None,
    as_json: Json = False,
) -> None:
    """Make an older version the current one again."""
    from dare_core.pools import retention

    _show_pool(pool, retention.rollback(pool_store_at(pool), pool_version).version, as_json)


@app.command("expire")
def pool_expire(
    pool: PoolRoot,
    keep: Annotated[int, typer.Option(min=1, help="versions to keep; one in use is kept besides")] = 7,
    as_json: Json = False,
) -> None:
    """Remove older versions and the files that only they need."""
    from dare_core.pools import retention

    store = pool_store_at(pool)
    gone = retention.expire(store, keep)
    facts = {"expired": gone, "left": store.versions()}
    print(json.dumps(facts) if as_json else f"expired {len(gone)}, left: {' '.join(facts['left'])}")


@app.command("forget")
def pool_forget(
    pool: PoolRoot,
    entity: Annotated[list[str], typer.Option(help="id of a user or item; repeatable")],
    as_json: Json = False,
) -> None:
    """Make a version without these entities' texts the current one, and keep them out of later ones.

    Versions before it hold the texts until they are expired.
    """
    from dare_core.pools import retention

    store = pool_store_at(pool)
    before = store.manifest()
    after = retention.forget(store, entity)
    older = store.versions()[1:]
    facts = {"version": after.version, "texts_removed": before.texts - after.texts, "older_versions": older}
    if as_json:
        print(json.dumps(facts))
        return
    console.print(f"version {after.version} is without {facts['texts_removed']} texts of {', '.join(entity)}")
    if older:
        console.print(f"{len(older)} older versions still hold them; `dare pool expire {pool} --keep 1` removes those")


@app.command("export")
def pool_export(
    pool: PoolRoot,
    out: Annotated[Path, typer.Option(help="Parquet file to write: group, token_ids, day")],
    pool_version: PoolVersion = None,
    as_json: Json = False,
) -> None:
    """Write a pool version's texts to a Parquet file. Whom they are about is not in a pool."""
    import pyarrow.parquet as pq

    from dare_core.pools.reader import texts_of

    require_writable(out)
    store = pool_store_at(pool)
    manifest = store.manifest(pool_version)
    texts = texts_of(store, manifest)
    pq.write_table(texts, out)
    facts = {"version": manifest.version, "texts": len(texts), "out": str(out)}
    print(json.dumps(facts) if as_json else f"{len(texts)} texts of version {manifest.version} are in {out}")


def pool_store_at(root: str) -> "PoolStore":
    """The store under a root. Of the pipeline's own pools, the warehouse says which version is in force."""
    from dare_core.pools import PoolStore

    settings = load_settings()
    named = _of_pipeline(settings, root)
    if named is None:
        return PoolStore(root, cache=settings.pool_cache_dir, cache_bytes=settings.pool_cache_bytes)
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.pools import pool_store
    from dare_core.warehouse.server import serving

    engine = connect(held.enter_context(serving(settings)))
    return pool_store(settings, engine, *named)


def _of_pipeline(settings: Settings, root: str) -> tuple[str, Kind] | None:
    """Domain and kind of a pool of the pipeline, by these two or by where it lies; None: it is another one."""
    *above, domain, last = ("", "", *Path(root).parts)
    for kind in KINDS:
        if kind == last and _DOMAIN.fullmatch(domain):
            own = settings.pool_dir(domain, kind)
            is_meant = not any(above) or _resolved(location(root.rstrip("/"))) == _resolved(own)
            return (domain, kind) if is_meant and is_folder(own) else None
    return None


def _resolved(place: Location) -> Location:
    return place.resolve() if isinstance(place, Path) else place


def _pool_texts(knowledge: Path, model: str | None) -> "tuple[pa.Table, tuple[str, str, int]]":
    """The texts of a file, and what they are of: model, tokenizer hash, vocabulary."""
    from dare_core import models
    from dare_core.pools.knowledge_file import read_knowledge

    settings = settings_of(model=model)
    texts = read_knowledge(knowledge)
    tokenizer = models.load_tokenizer(settings)
    return texts, (settings.model, models.tokenizer_hash(tokenizer), models.vocabulary_size(settings))


def _show_pool(root: str, version: str | None, as_json: bool) -> None:
    store = pool_store_at(root)
    manifest = store.manifest(version)
    groups = {name: {"texts": part.texts, "tokens": part.tokens} for name, part in manifest.groups.items()}
    if as_json:
        facts = {name: getattr(manifest, name) for name in ("version", "model", "tokenizer_hash", "texts", "tokens")}
        print(json.dumps({**facts, "groups": groups}, ensure_ascii=False))
        return
    rows = [(name, part.texts, part.tokens, len(part.segments), part.size) for name, part in manifest.groups.items()]
    title = f"pool version {manifest.version} · {manifest.model} · tokenizer {manifest.tokenizer_hash}"
    console.print(result_table(title, ("group", "texts", "tokens", "segments", "bytes"), rows))
    pinned = store.register.pins()
    for at, listed in enumerate(store.versions()):
        users = [holder for holder, in_use in pinned.items() if in_use == listed]
        console.print(listed + (" current" if at == 0 else "") + (f" in use by {', '.join(users)}" if users else ""))
