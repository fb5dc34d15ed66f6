"""A domain's interactions as examples for click models, split by time, and the entities that texts are written about.

Point in time: an example sees what happened strictly before it, and a text only where the newest event that its prompt
shows lies strictly before the example. Entities, their prompts and every vocabulary come from before the split.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from dare_core.config.domains import Domain, EntityTable
from dare_core.errors import InputError, SettingError, SourceError
from dare_core.grouping import AttributeGroups, route
from dare_core.schemas import KINDS, Kind
from dare_core.warehouse.connection import reason

#: Of the interactions in the order of time, those that models are trained on; the others test them.
TRAIN_SHARE: Final = 0.8
#: Liked items that an example shows at most, the newest.
HISTORY: Final = 10
#: Of the entities that texts are written about, the share that are items.
_ITEM_SHARE: Final = 5 / 6


class Interaction(NamedTuple):
    """A user met an item."""

    time: datetime
    user: str
    item: str
    value: float


@dataclass(frozen=True)
class SourceRows:
    """A domain's source tables: rows of items and users by id, and interactions in the order of time."""

    items: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]
    interactions: Sequence[Interaction]


@dataclass(frozen=True)
class Entity:
    """Whom a text is written about.

    Attributes:
        group: the retrieval-pool group, by attribute.
        attributes: as ``schemas.ENTITY`` holds them.
        data_as_of: the newest event that its prompt can show.
    """

    kind: Kind
    entity_id: str
    group: str
    attributes: Mapping[str, Any]
    data_as_of: datetime


@dataclass(frozen=True)
class Examples:
    """Examples for a click model, in the order of time.

    Attributes:
        fields: ``[n, f]`` int64, codes of user, item and their attributes, each field with codes of its own; the
            first code of a field stands for what training did not know.
        history: ``[n, HISTORY]`` int64, codes of the items liked before, the newest first; 0 where there are fewer.
        texts: ``[n, 2]`` int64, place of the item's and of the user's text among the entities of their kind, from 1;
            0 where there is none, or it may not be seen.
        labels: ``[n]`` float32, 1 for liked.
    """

    fields: NDArray[np.int64]
    history: NDArray[np.int64]
    texts: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """What models are trained on, and what they are tested on.

    Attributes:
        moment: of the last training example; tests lie strictly after it.
        codes: that ``fields`` can have, all fields together.
    """

    moment: datetime
    codes: int
    train: Examples
    test: Examples


def read_source(engine: Engine, domain: Domain) -> SourceRows:
    """Read a domain's tables from the warehouse's database.

    Raises:
        SettingError: the domain's tables lie elsewhere.
        SourceError: they are not there or lack a column.
    """
    source = domain.source
    if source.format != "postgres" or source.location is not None:
        raise SettingError(
            f"domain {domain.name}: source.format {source.format} with a place of its own cannot be evaluated; "
            "import the tables into the warehouse's database first"
        )
    what = source.interactions
    read = (
        "SELECT {} AS time, CAST({} AS text) AS user, CAST({} AS text) AS item, CAST({} AS double precision) AS value"
    )
    columns = (_quoted(engine, name) for name in (what.time, what.user, what.item, what.value))
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                text(f"{read.format(*columns)} FROM {_table(engine, domain, what.table)} ORDER BY 1, 2, 3")
            )
            interactions = [
                Interaction(_aware(row.time, what.time) or row.time, row.user, row.item, row.value)
                for row in rows
                if None not in tuple(row)  # a pull drops them too
            ]
            items, users = (
                {
                    str(row[spec.id]): {**row, spec.updated_at: _aware(row[spec.updated_at], spec.updated_at)}
                    for row in connection.execute(
                        text(f"SELECT * FROM {_table(engine, domain, spec.table)}")  # noqa: S608 - quoted
                    ).mappings()
                }
                for spec in (source.items, source.users)
            )
    except (DBAPIError, KeyError) as error:
        raise SourceError(
            f"the tables of domain {domain.name} cannot be read: {reason(error)}; run `dare source import`, or mend "
            f"config/{domain.name}.toml"
        ) from None
    if not interactions:
        raise SourceError(f"table {what.table} of domain {domain.name} has no rows")
    return SourceRows(items, users, interactions)


def _aware(time: date | None, column: str) -> datetime | None:
    """A time to compare with all others: without a zone it is UTC, as for a pull; a date is its first moment."""
    if time is None:
        return None
    if not isinstance(time, date):
        raise SourceError(f"column {column!r} holds {type(time).__name__}, and no times")
    if not isinstance(time, datetime):
        time = datetime.combine(time, datetime.min.time(), UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _is_titled(domain: Domain, item: Mapping[str, Any]) -> bool:
    """Whether there is something to ask about; a pull quarantines the others."""
    title = item[domain.source.items.title or domain.source.items.id]
    return title is not None and bool(str(title).strip())


def _was_there(spec: EntityTable, row: Mapping[str, Any], until: datetime) -> bool:
    return row[spec.updated_at] is not None and row[spec.updated_at] <= until


def split_moment(rows: SourceRows) -> datetime:
    """Up to when interactions are trained on."""
    return rows.interactions[int(TRAIN_SHARE * len(rows.interactions)) - 1].time


def choose_entities(domain: Domain, rows: SourceRows, count: int) -> list[Entity]:
    """The entities that every arm writes about, by what was known at the split: the items met most often, and the users
    seen last among those with a whole history.

    A user's text is written once, when the user has ``max_history`` interactions, and serves from then on.
    """
    until = split_moment(rows)
    before = [one for one in rows.interactions if one.time <= until]
    met: dict[str, int] = defaultdict(int)
    seen: dict[str, list[Interaction]] = defaultdict(list)
    for one in before:
        met[one.item] += 1
        seen[one.user].append(one)
    wanted = round(_ITEM_SHARE * count)
    spec = domain.source.items
    items = [
        Entity("item", name, "", _attributes(spec, rows.items[name]), rows.items[name][spec.updated_at])
        for name in sorted(met, key=lambda name: (-met[name], name))
        if name in rows.items and _was_there(spec, rows.items[name], until) and _is_titled(domain, rows.items[name])
    ]
    users = [
        user
        for name in sorted(seen, key=lambda name: (seen[name][-1].time, name), reverse=True)
        if len(seen[name]) >= domain.knowledge.max_history
        and name in rows.users
        and _was_there(domain.source.users, rows.users[name], until)
        and (user := _user(domain, rows, seen[name])) is not None
    ]
    chosen = [*items[:wanted], *users[: count - wanted]]
    if not chosen:
        raise InputError(f"domain {domain.name} has no entity to write about before {until}")
    return _grouped(domain, rows, chosen)


def make_split(domain: Domain, rows: SourceRows, entities: Sequence[Entity]) -> Split:
    """Examples of all interactions, split at :func:`split_moment`.

    Raises:
        SettingError: the domain file does not say from which value on an interaction is a like.
        InputError: training or test examples are all of one kind.
    """
    if domain.evaluation is None:
        raise SettingError(
            f"config/{domain.name}.toml has no section [evaluation] with positive_from, from which on a value is a like"
        )
    moment = split_moment(rows)
    train_rows = sum(one.time <= moment for one in rows.interactions)
    columns = [[_field(value) for value in column] for column in zip(*_field_rows(domain, rows), strict=True)]
    codes, fields = 0, []
    for column in columns:
        known = {value: 1 + place for place, value in enumerate(sorted(set(column[:train_rows])))}
        fields.append([codes + known.get(value, 0) for value in column])
        codes += len(known) + 1
    positive = [one.value >= domain.evaluation.positive_from for one in rows.interactions]
    coded = np.array(fields, np.int64).T
    examples = Examples(
        coded,
        _histories(rows, positive, coded[:, _ITEM_FIELD]),
        _visible_texts(rows, entities),
        np.array(positive, np.float32),
    )
    parts = [
        Examples(*(getattr(examples, name)[part] for name in ("fields", "history", "texts", "labels")))
        for part in (slice(train_rows), slice(train_rows, None))
    ]
    if any(len(set(part.labels.tolist())) < 2 for part in parts):
        raise InputError(f"domain {domain.name}: all examples before, or all after {moment} have the same label")
    return Split(moment, codes, *parts)


_ITEM_FIELD: Final = 1


def _field_rows(domain: Domain, rows: SourceRows) -> Iterable[tuple[Any, ...]]:
    source = domain.source
    for one in rows.interactions:
        user, item = rows.users.get(one.user, {}), rows.items.get(one.item, {})
        yield (
            one.user,
            one.item,
            *(user.get(name) for name in source.users.attributes),
            *(item.get(name) for name in source.items.attributes),
        )


def _field(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _histories(rows: SourceRows, positive: Sequence[bool], items: NDArray[np.int64]) -> NDArray[np.int64]:
    histories = np.zeros((len(rows.interactions), HISTORY), np.int64)
    liked: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
    for place, (one, is_liked) in enumerate(zip(rows.interactions, positive, strict=True)):
        # Of what shares the example's moment, nobody knows what came first.
        before = [item for time, item in liked[one.user][-4 * HISTORY :] if time < one.time][-HISTORY:]
        histories[place, : len(before)] = before[::-1]
        if is_liked:
            liked[one.user].append((one.time, int(items[place])))
    return histories


def _visible_texts(rows: SourceRows, entities: Sequence[Entity]) -> NDArray[np.int64]:
    texts = np.zeros((len(rows.interactions), len(KINDS)), np.int64)
    for column, kind in enumerate(KINDS):
        of_kind = [entity for entity in entities if entity.kind == kind]
        places = {entity.entity_id: (place, entity.data_as_of) for place, entity in enumerate(of_kind, 1)}
        for row, one in enumerate(rows.interactions):
            place, shown = places.get(getattr(one, kind), (0, one.time))
            if shown < one.time:
                texts[row, column] = place
    return texts


def _user(domain: Domain, rows: SourceRows, seen: Sequence[Interaction]) -> Entity | None:
    """None: of all that the user met, nothing has a name."""
    spec, title = domain.source.users, domain.source.items.title or domain.source.items.id
    known = [one for one in seen if one.item in rows.items and _is_titled(domain, rows.items[one.item])]
    if not (shown := known[: domain.knowledge.max_history]):
        return None
    history = [{"title": rows.items[one.item][title], "value": one.value} for one in shown]
    row = rows.users[seen[0].user]
    attributes = {**_attributes(spec, row), "history": history}
    return Entity("user", seen[0].user, "", attributes, max(shown[-1].time, row[spec.updated_at]))


def _attributes(spec: EntityTable, row: Mapping[str, Any]) -> dict[str, Any]:
    titled = {"title": row[spec.title]} if spec.title else {}
    return titled | {name: row[name] for name in spec.attributes}


def _grouped(domain: Domain, rows: SourceRows, entities: Sequence[Entity]) -> list[Entity]:
    until = split_moment(rows)
    grouped: list[Entity] = []
    for kind in KINDS:
        spec, table = (domain.source.items, rows.items) if kind == "item" else (domain.source.users, rows.users)
        rules = domain.grouping.items if kind == "item" else domain.grouping.users
        unfitted = AttributeGroups(spec.group, rules.several, rules.rest, ())
        counts = Counter(unfitted.name(row) for row in table.values() if _was_there(spec, row, until))
        fitted = AttributeGroups.fit(spec.group, rules, counts)
        of_kind = [entity for entity in entities if entity.kind == kind]
        grouped += [replace(one, group=route(fitted, one.attributes).group) for one in of_kind]
    return grouped


def _table(engine: Engine, domain: Domain, name: str) -> str:
    return f"{_quoted(engine, domain.source.db_schema)}.{_quoted(engine, name)}"


def _quoted(engine: Engine, name: str) -> str:
    return engine.dialect.identifier_preparer.quote_identifier(name)
