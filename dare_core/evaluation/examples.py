"""A domain's interactions as examples for click models, in rolling splits by time.

Point in time: an example sees what happened strictly before it, and a text only from the moment on at which it was
there (:func:`dare_core.evaluation.service.seen_from`). Vocabularies come from what a model is trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.config.domains import Domain
from dare_core.errors import InputError, SettingError
from dare_core.evaluation.service import Entity, microseconds, newest_seen, seen_from
from dare_core.evaluation.source import SourceRows
from dare_core.features.likeness import INTERACTIONS
from dare_core.features.newest import newest_before
from dare_core.schemas import KINDS

#: Of the interactions in the order of time, where each split's tests begin and end; all before is trained on.
SPLITS: Final = ((0.7, 0.8), (0.8, 0.9), (0.9, 1.0))
#: Of what is trained on, the newest share validates: it says when to stop.
VALIDATION_SHARE: Final = 0.1
#: Liked items that a click model attends over, the newest.
HISTORY: Final = 10

#: Columns of ``Examples.fields``.
USER: Final = 0
ITEM: Final = 1


@dataclass(frozen=True)
class Examples:
    """Examples in the order of time.

    Attributes:
        times: ``[n]`` int64, microseconds from 1970 on.
        fields: ``[n, f]`` int64, codes of user, item and their attributes from 1, each field with codes of its own.
        met: ``[n, INTERACTIONS]`` int64, the user's examples before, the newest first; -1 where there are fewer.
        likes: ``[n, HISTORY]`` int64, those of them that were liked, likewise.
        labels: ``[n]`` float32, 1 for liked.
    """

    times: NDArray[np.int64]
    fields: NDArray[np.int64]
    met: NDArray[np.int64]
    likes: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Sight:
    """Which texts each example sees, as places among the texts of a kind from 1; 0 where there is none to see.

    Attributes:
        item: ``[n]`` int64, the text of the example's item.
        user: ``[n]`` int64, that of its user.
        met: ``[n, INTERACTIONS]`` int64, those of the items that the user met before.
        likes: ``[n, HISTORY]`` int64, those of the items that the user liked before.
    """

    item: NDArray[np.int64]
    user: NDArray[np.int64]
    met: NDArray[np.int64]
    likes: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of the examples: what is trained on, what says when to stop, and what tests."""

    train: slice
    validation: slice
    test: slice


def make_examples(domain: Domain, rows: SourceRows) -> Examples:
    """Examples of all interactions.

    Raises:
        SettingError: the domain file does not say from which value on an interaction is a like.
    """
    if domain.evaluation is None:
        raise SettingError(
            f"config/{domain.name}.toml has no section [evaluation] with positive_from, from which on a value is a like"
        )
    fields = np.array([_codes(column) for column in zip(*_field_rows(domain, rows), strict=True)], np.int64).T
    times = microseconds([one.time for one in rows.interactions])
    positive = np.array([one.value >= domain.evaluation.positive_from for one in rows.interactions])
    met = newest_before(fields[:, USER], times, INTERACTIONS)
    likes = newest_before(fields[:, USER], times, HISTORY, among=positive)
    return Examples(times, fields, met, likes, positive.astype(np.float32))


def make_sight(rows: SourceRows, examples: Examples, entities: Sequence[Entity], nightly: bool) -> Sight:
    """What examples see of the entities' texts, without delay or from the midnight after on."""
    of_kind = {kind: [entity for entity in entities if entity.kind == kind] for kind in KINDS}
    seen = {kind: seen_from(of_kind[kind], nightly) for kind in KINDS}
    item, user = (
        newest_seen(of_kind[kind], seen[kind], [getattr(one, kind) for one in rows.interactions], examples.times)
        for kind in ("item", "user")
    )
    # An item has one text. That of what was met earlier may be there by now.
    places = {entity.entity_id: place for place, entity in enumerate(of_kind["item"], 1)}
    place = np.array([places.get(one.item, 0) for one in rows.interactions], np.int64)
    begins = np.append(np.int64(0), seen["item"])

    def of_earlier(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        texts = np.where(rows >= 0, place[rows], 0)
        return np.where(begins[texts] <= examples.times[:, None], texts, 0)

    return Sight(item, user, of_earlier(examples.met), of_earlier(examples.likes))


def make_splits(domain: Domain, examples: Examples) -> list[Split]:
    """Rolling splits: each trains on all before its tests. What shares a moment is on one side.

    Raises:
        InputError: a part is empty, or its examples have all the same label.
    """
    splits = []
    for begin, end in SPLITS:
        test = slice(*(_boundary(examples.times, share) for share in (begin, end)))
        train = _boundary(examples.times, (1 - VALIDATION_SHARE) * begin)
        split = Split(slice(train), slice(train, test.start), test)
        for what, part in vars(split).items():
            if len(set(examples.labels[part].tolist())) < 2:
                raise InputError(
                    f"domain {domain.name}: {len(examples)} interactions are too few to evaluate: the {what} part of "
                    f"the split at {begin:.0%} has no example, or examples of one label alone"
                )
        splits.append(split)
    return splits


def known_codes(
    fields: NDArray[np.int64], trained: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Codes of all fields together, as a model knows them that was trained on some rows.

    Args:
        fields: ``[n, f]`` of :class:`Examples`.
        trained: ``[k, f]``, the rows that were trained on.

    Returns:
        ``fields`` in these codes; by item code of ``fields`` the item's code; and how many codes there are. A field's
        first code stands for what training did not know; 0 for nothing at all.
    """
    offset = 1
    columns, items = [], np.zeros(0, np.int64)
    for column in range(fields.shape[1]):
        known = np.zeros(fields[:, column].max(initial=0) + 1, np.int64)
        values = np.unique(trained[:, column])
        known[values] = 1 + np.arange(len(values))
        columns.append(offset + known[fields[:, column]])
        if column == ITEM:
            items = offset + known
        offset += len(values) + 1
    return np.stack(columns, axis=1), items, offset


def _boundary(times: NDArray[np.int64], share: float) -> int:
    """The first row after the moment that so large a share of the rows reaches."""
    at = round(share * len(times))
    return int(np.searchsorted(times, times[at - 1], side="right")) if at else 0


def _codes(values: Sequence[Any]) -> NDArray[np.int64]:
    return 1 + np.unique([_field(value) for value in values], return_inverse=True)[1].astype(np.int64)


def _field_rows(domain: Domain, rows: SourceRows) -> Iterator[tuple[Any, ...]]:
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
