"""The texts that a domain's entities would have had in service, and which of them an example may see.

The service begins at some moment. An item is written about from its row. A user is written about when ``first_events``
interactions are known, or at the beginning where they were known before, and again after every ``min_new_events`` more.
What a prompt shows was known at that moment; what shares a moment is known together.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.config.domains import Domain, EntityTable
from dare_core.evaluation.source import Interaction, SourceRows
from dare_core.grouping import AttributeGroups, route
from dare_core.schemas import KINDS, Kind

_DAY: Final = 86_400_000_000


@dataclass(frozen=True)
class Entity:
    """An item, or a user at some moment: whom a text is written about.

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


def entities_in_service(domain: Domain, rows: SourceRows, since: datetime) -> list[Entity]:
    """All items, then the users' versions that an interaction can see, each kind by id and ``data_as_of``.

    Args:
        domain: says when a user is written about.
        rows: the source.
        since: when the service began. The groups are named by who was there then.
    """
    spec = domain.source.items
    items = [
        Entity("item", name, "", _attributes(spec, row), row[spec.updated_at])
        for name, row in sorted(rows.items.items())
        if row[spec.updated_at] is not None and _is_titled(domain, row)
    ]
    met: dict[str, list[Interaction]] = defaultdict(list)
    for one in rows.interactions:
        if one.item in rows.items:
            met[one.user].append(one)
    users = [
        version for name in sorted(met) if name in rows.users for version in _versions(domain, rows, met[name], since)
    ]
    return _grouped(domain, rows, [*items, *users], since)


def _versions(domain: Domain, rows: SourceRows, met: Sequence[Interaction], since: datetime) -> list[Entity]:
    """A user's versions, by ``data_as_of``."""
    spec, evaluation = domain.source.users, domain.evaluation
    assert evaluation is not None
    first = evaluation.first_events or domain.knowledge.max_history
    again = evaluation.min_new_events or domain.knowledge.min_new_events
    row = rows.users[met[0].user]
    if row[spec.updated_at] is None or row[spec.updated_at] >= met[-1].time:
        return []
    versions: dict[datetime, Entity] = {}
    due = first
    for known, (one, following) in enumerate(pairwise(met), 1):  # nobody sees what follows the last
        if known < due or following.time == one.time or following.time <= since:
            continue
        due = known + again
        if history := _history(domain, rows, met[:known]):
            data_as_of = max(one.time, row[spec.updated_at])
            attributes = {**_attributes(spec, row), "history": history}
            versions[data_as_of] = Entity("user", one.user, "", attributes, data_as_of)
    return list(versions.values())


def _history(domain: Domain, rows: SourceRows, met: Sequence[Interaction]) -> list[dict[str, Any]]:
    """What a prompt shows: the newest, oldest first, of those whose item had a name by then."""
    spec = domain.source.items
    title, until = spec.title or spec.id, met[-1].time
    shown: list[dict[str, Any]] = []
    for one in reversed(met):
        row = rows.items[one.item]
        if row[spec.updated_at] is not None and row[spec.updated_at] <= until and _is_titled(domain, row):
            shown.append({**_attributes(spec, row), "title": row[title], "value": one.value})
        if len(shown) == domain.knowledge.max_history:
            break
    return shown[::-1]


def seen_from(entities: Sequence[Entity], nightly: bool) -> NDArray[np.int64]:
    """``[m]``, the first moment at which an example may see each text, in microseconds from 1970 on.

    Without delay that is a microsecond after the newest event that the prompt shows; nightly, the midnight after it.
    """
    newest = microseconds([entity.data_as_of for entity in entities])
    return (newest // _DAY + 1) * _DAY if nightly else newest + 1


def newest_seen(
    entities: Sequence[Entity], seen: NDArray[np.int64], ids: Sequence[str], times: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``[n]``, the place among ``entities``, from 1, of the newest text that each example may see; 0 for none.

    Args:
        entities: of one kind, by id and ``data_as_of``.
        seen: of :func:`seen_from`.
        ids: whom each example asks about.
        times: of the examples, in microseconds.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, entity in enumerate(entities):
        places[entity.entity_id].append(place)
    starts = {name: (seen[of_entity], of_entity[0]) for name, of_entity in places.items()}
    found = np.zeros(len(times), np.int64)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(ids):
        rows[name].append(row)
    for name, of_name in rows.items():
        if name in starts:
            begins, offset = starts[name]
            count = np.searchsorted(begins, times[of_name], side="right")
            found[of_name] = np.where(count > 0, offset + count, 0)
    return found


def microseconds(times: Sequence[datetime]) -> NDArray[np.int64]:
    """``[n]``, times from 1970 on; they have a zone, whichever."""
    return np.array([time.astimezone(UTC).replace(tzinfo=None) for time in times], "datetime64[us]").astype(np.int64)


def _is_titled(domain: Domain, item: Mapping[str, Any]) -> bool:
    """Whether there is something to ask about; a pull quarantines the others."""
    title = item[domain.source.items.title or domain.source.items.id]
    return title is not None and bool(str(title).strip())


def _attributes(spec: EntityTable, row: Mapping[str, Any]) -> dict[str, Any]:
    titled = {"title": row[spec.title]} if spec.title else {}
    return titled | {name: row[name] for name in spec.attributes}


def _grouped(domain: Domain, rows: SourceRows, entities: Sequence[Entity], until: datetime) -> list[Entity]:
    grouped: list[Entity] = []
    for kind in KINDS:
        spec, table = (domain.source.items, rows.items) if kind == "item" else (domain.source.users, rows.users)
        rules = domain.grouping.items if kind == "item" else domain.grouping.users
        unfitted = AttributeGroups(spec.group, rules.several, rules.rest, ())
        there = (row for row in table.values() if row[spec.updated_at] is not None and row[spec.updated_at] <= until)
        fitted = AttributeGroups.fit(spec.group, rules, Counter(map(unfitted.name, there)))
        of_kind = [entity for entity in entities if entity.kind == kind]
        grouped += [replace(one, group=route(fitted, one.attributes).group) for one in of_kind]
    return grouped
