"""What grouping is worth: tokens per step with a group's own pool, over random groups of the same sizes.

No model takes part. Texts that were decoded strictly are replayed against pools of other texts: at each position the
drafter drafts a tree, the longest path of it that the text goes on with is accepted, and one token more is emitted, as
strict verification would have it (DESIGN.md decision 9). So the steps are those of an engine that verifies every node
of the tree; the time that a step takes does not enter. Every text is held out once, in one of a few folds.

    python -m bench.grouping_gain --knowledge FILE --kind item
    python -m bench.grouping_gain --knowledge FILE --kind user --pools .dare/pools/movies
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dare_core.config.domains import Domain, EntityTable, load_domain
from dare_core.config.settings import load_settings
from dare_core.errors import InputError
from dare_core.grouping import AttributeGroups, GroupModelStore, route
from dare_core.pools import Pool, PoolBuilder, PoolDrafter, PoolStore
from dare_core.pools.probe import replay_steps
from dare_core.schemas import TOKENS, Kind
from dare_core.sources.movielens import read_movielens
from dare_core.storage.locations import Location

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Replay:
    """How the gain is measured.

    Attributes:
        folds: a text's pool is made of the texts of the other folds.
        shuffles: random groupings, whose steps are averaged.
        nodes: of a draft tree (paper: 64).
        own_text: draft from the text's own words too.
        global_pool: draft from all groups' texts beside those of the group.
        resamples: of the bootstrap over texts.
        seed: of folds, shuffles and resamples.
    """

    folds: int = 5
    shuffles: int = 2
    nodes: int = 64
    own_text: bool = False
    global_pool: bool = False
    resamples: int = 2000
    seed: int = 0


def grouping_gain(
    texts: pa.Table, replay: Replay = Replay(), on_progress: OnProgress = lambda what: None
) -> dict[str, Any]:
    """Measure tokens per step with pools by group, by random group, and with one pool of all texts.

    Random groups have the sizes of the true ones: the groups of the texts in the pools are shuffled.

    Args:
        texts: columns ``group`` and ``token_ids``; strictly decoded texts, at least as many as there are folds.
        replay: how.

    Returns:
        ``grouped_vs_random`` (a ratio), ``grouped_vs_random_low`` and ``_high`` (95% interval over texts),
        ``grouped_vs_one_pool``, ``tokens_per_step`` of each, and what took part.

    Raises:
        InputError: there are too few texts.
    """
    tokens = [np.array(ids, np.int32) for ids in texts["token_ids"].to_pylist()]
    groups = np.array(texts["group"].to_pylist(), object)
    if len(tokens) < replay.folds:
        raise InputError(f"{len(tokens)} texts are too few to hold one of {replay.folds} parts out")
    random = np.random.default_rng(replay.seed)
    fold = random.permutation(len(tokens)) % replay.folds
    steps: dict[str, NDArray[np.float64]] = {name: np.zeros(len(tokens)) for name in ("grouped", "random", "one pool")}
    for part in range(replay.folds):
        on_progress(f"grouping, part {part + 1} of {replay.folds}")
        held_out, pooled = np.flatnonzero(fold == part), np.flatnonzero(fold != part)
        asked = [tokens[i] for i in held_out], groups[held_out].tolist()
        pool_texts = [tokens[i] for i in pooled]
        steps["grouped"][held_out] = _steps(pool_texts, groups[pooled], *asked, replay)
        steps["one pool"][held_out] = _steps(pool_texts, groups[pooled], *asked, replay, grouped=False)
        for _ in range(replay.shuffles):
            shuffled = random.permutation(groups[pooled])
            steps["random"][held_out] += _steps(pool_texts, shuffled, *asked, replay) / replay.shuffles
    lengths = np.array([len(text) for text in tokens], np.float64)
    drawn = random.integers(len(tokens), size=(replay.resamples, len(tokens)))
    ratios = steps["random"][drawn].sum(1) / steps["grouped"][drawn].sum(1)  # the tokens are the same
    low, high = np.quantile(ratios, (0.025, 0.975))
    total = {name: float(taken.sum()) for name, taken in steps.items()}
    return {
        "grouped_vs_random": round(total["random"] / total["grouped"], 4),
        "grouped_vs_random_low": round(float(low), 4),
        "grouped_vs_random_high": round(float(high), 4),
        "grouped_vs_one_pool": round(total["one pool"] / total["grouped"], 4),
        "tokens_per_step": {name: round(float(lengths.sum()) / taken, 4) for name, taken in total.items()},
        "texts": len(tokens),
        "groups": len(set(groups.tolist())),
        **asdict(replay),
    }


def _steps(
    pool_texts: Sequence[NDArray[np.int32]],
    pool_groups: NDArray[np.object_],
    texts: Sequence[NDArray[np.int32]],
    groups: Sequence[str],
    replay: Replay,
    grouped: bool = True,
) -> NDArray[np.float64]:
    vocabulary = 1 + max(int(text.max(initial=0)) for text in pool_texts)
    table = pa.table({"group": pa.array(pool_groups.tolist(), pa.string()), "token_ids": pa.array(pool_texts, TOKENS)})
    with tempfile.TemporaryDirectory(prefix="dare-grouping-") as folder:
        store = PoolStore(Path(folder))
        PoolBuilder(store, "replay", "replay", vocabulary).build(table)
        drafter = PoolDrafter(
            Pool.open(store, "replay"),
            learned_tokens=0,
            use_own_text=replay.own_text,
            use_global=replay.global_pool,
            grouped=grouped,
        )
        return np.array(replay_steps(drafter, texts, groups, replay.nodes), np.float64)


def item_groups(domain: Domain, entity_ids: Sequence[str]) -> list[str]:
    """The groups that ``spark_jobs/group.py`` gives MovieLens-100K's items under ``domain``."""
    spec: EntityTable = domain.source.items
    items = {row[spec.id]: row for row in read_movielens()["items"].to_pylist()}
    unfitted = AttributeGroups(spec.group, domain.grouping.items.several, domain.grouping.items.rest, ())
    counts: dict[str, int] = {}
    for row in items.values():
        name = unfitted.name(row)
        counts[name] = counts.get(name, 0) + 1
    fitted = AttributeGroups.fit(spec.group, domain.grouping.items, counts)
    return [route(fitted, items[entity]).group for entity in entity_ids]


def user_groups(pool_root: Location, entity_ids: Sequence[str]) -> list[str]:
    """The clusters that the latest group model beside a pool has users in; ``no cluster`` for the others.

    Raises:
        InputError: there is no group model.
    """
    store = GroupModelStore(pool_root)
    versions = store.versions()
    if not versions:
        raise InputError(f"there is no group model beside the pool {pool_root}; group users first")
    model = store.read_version(versions[0])
    clusters = dict(zip(*model.assignments.to_pydict().values(), strict=True))
    return [clusters.get(entity, "no cluster") for entity in entity_ids]


def read_texts(knowledge: Path, kind: Kind) -> pa.Table:
    """Columns ``entity_id`` and ``token_ids`` of one kind's texts in a Parquet file.

    Raises:
        InputError: the file cannot be read, or holds no such text.
    """
    try:
        table = pq.read_table(knowledge, columns=["kind", "entity_id", "token_ids"])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{knowledge}: no readable Parquet file with these columns: {error}") from None
    texts = table.filter(pc.equal(table["kind"], kind))
    if not len(texts):
        raise InputError(f"{knowledge}: holds no text of kind {kind}")
    return texts.drop_columns("kind")


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON line for each way of drafting: groups alone, with the text's own words, with the global pool."""
    parser = argparse.ArgumentParser(prog="grouping_gain")
    parser.add_argument("--knowledge", type=Path, required=True, help="Parquet: kind, entity_id, token_ids")
    parser.add_argument("--kind", choices=("item", "user"), default="item")
    parser.add_argument("--domain", default="movies")
    parser.add_argument("--pools", type=Path, help="users: folder with the domain's pools")
    parser.add_argument("--folds", type=int, default=Replay.folds)
    parser.add_argument("--shuffles", type=int, default=Replay.shuffles)
    given = parser.parse_args(argv)
    settings = load_settings()
    texts = read_texts(given.knowledge, given.kind)
    ids = texts["entity_id"].to_pylist()
    if given.kind == "item":
        groups = item_groups(load_domain(settings, given.domain), ids)
    else:
        groups = user_groups((given.pools or settings.pool_dir(given.domain, "item").parent) / "user", ids)
    texts = texts.append_column("group", pa.array(groups, pa.string()))
    for own_text, global_pool in ((False, False), (True, False), (True, True)):
        replay = Replay(given.folds, given.shuffles, own_text=own_text, global_pool=global_pool)
        print(json.dumps(grouping_gain(texts, replay)), flush=True)


if __name__ == "__main__":
    main()
