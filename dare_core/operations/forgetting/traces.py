"""What gives an entity away: its id where it is named as one, its requests, its texts, its title.

Ids are often short numbers, which stand everywhere and mean nothing. So an id counts where it follows the name of its
kind or of its column, and by itself only where it is long enough to be nothing else.
"""

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from markupsafe import escape

from dare_core.schemas import Kind
from dare_core.warehouse.entities import tombstone

#: SQL: a row is about the entities whose :attr:`Entities.bound` is bound.
OWN: Final = "domain = %(domain)s AND kind = %(kind)s AND entity_id = ANY(%(ids)s::text[])"

#: Shorter texts and titles may well be somebody else's.
SHORTEST_TEXT: Final = 20
SHORTEST_TITLE: Final = 4
#: From so many characters on an id by itself counts; of an id of digits, from so many digits on.
_UNMISTAKABLE: Final = 5
_UNMISTAKABLE_DIGITS: Final = 10

#: Understood alike by Python and by PostgreSQL: where a word begins and ends (numbers end no sooner than their decimals
#: do), and what stands between a column's name and its value in JSON, HTML or a list of options.
_BEGIN: Final = r"(?:^|[^\w-])"
_END: Final = r"(?:[^\w.-]|\.\D|\.?$)"
_BETWEEN: Final = r"(?:&#?\w+;|\W){1,8}"


@dataclass(frozen=True)
class Entities:
    """Some entities of one kind in one domain."""

    domain: str
    kind: Kind
    ids: tuple[str, ...]

    @property
    def tombstones(self) -> dict[str, str]:
        """What is kept of each, by id."""
        return {entity_id: tombstone(self.domain, self.kind, entity_id) for entity_id in self.ids}

    @property
    def bound(self) -> dict[str, Any]:
        """For :data:`OWN`."""
        return {"domain": self.domain, "kind": self.kind, "ids": list(self.ids)}

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(self.ids)} of {self.domain}"


@dataclass(frozen=True)
class Traces:
    """What belongs to some entities and to nobody else.

    Attributes:
        request_ids: of what was asked about them.
        texts: prompts and answers, whole.
        titles: of the entities themselves.
        token_ids: of the answers.
    """

    request_ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    titles: frozenset[str] = frozenset()
    token_ids: frozenset[tuple[int, ...]] = frozenset()

    def __or__(self, other: "Traces") -> "Traces":
        return Traces(*(mine | theirs for mine, theirs in zip(self._sets(), other._sets(), strict=True)))

    def __bool__(self) -> bool:
        return any(self._sets())

    def _sets(self) -> tuple[frozenset[Any], ...]:
        return self.request_ids, self.texts, self.titles, self.token_ids

    def to_json(self) -> str:
        """For :meth:`of_json`."""
        return json.dumps({name: sorted(values) for name, values in vars(self).items()}, ensure_ascii=False)

    @classmethod
    def of_json(cls, content: bytes) -> "Traces":
        """What :meth:`to_json` wrote."""
        read = json.loads(content)
        tokens = frozenset(tuple(ids) for ids in read.pop("token_ids"))
        return cls(**{name: frozenset(values) for name, values in read.items()}, token_ids=tokens)


def id_pattern(who: Entities, columns: Iterable[str] = ()) -> str:
    """A regular expression, for Python and PostgreSQL, that finds the ids where they are named as such.

    Args:
        who: whose ids.
        columns: what the ids' columns are called beside ``entity_id`` and the kind.
    """
    ids = _any_of(form for entity_id in who.ids for form in written_forms(entity_id))
    # After a kind's name and anything but a space, a number counts entities of that kind.
    named = f"{_BEGIN}(?:{who.kind}\\s+|{_any_of(['entity_id', *columns])}{_BETWEEN}){ids}{_END}"
    unmistakable = [form for entity_id in who.ids if _is_unmistakable(entity_id) for form in written_forms(entity_id)]
    return f"{named}|{_BEGIN}{_any_of(unmistakable)}{_END}" if unmistakable else named


def bare_pattern(words: Iterable[str]) -> str:
    """Likewise, one that finds ids or titles as words by themselves."""
    return f"{_BEGIN}{_any_of(form for word in words for form in written_forms(word))}{_END}"


def written_forms(text: str) -> list[str]:
    """A text as it stands in plain text, JSON and HTML, and in JSON that holds HTML."""
    shown = {text, html.escape(text), str(escape(text))}
    quoted = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in shown for ascii_only in (True, False)}
    return sorted(shown | quoted)


def storable(text: str) -> str:
    """A text as the warehouse holds it: without NUL characters, as quarantine writes them."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Sought:
    """Traces and ids, made ready to be looked for in bytes.

    Args:
        who: the entities.
        traces: theirs.
        columns: see :func:`id_pattern`.

    Attributes:
        named: finds ids where they are named as such.
        in_cells: finds them where they are all of a table's cell or of a quoted string.
        bare: finds them as words by themselves.
    """

    def __init__(self, who: Entities, traces: Traces, columns: Iterable[str] = ()) -> None:
        self.who, self.traces = who, traces
        forms = _any_of(form for entity_id in who.ids for form in written_forms(entity_id))
        self.named = _compiled(id_pattern(who, columns))
        self.in_cells = _compiled(f'[">]\\s*{forms}\\s*["<]')
        self.bare = _compiled(bare_pattern(who.ids))
        self._titles = _compiled(bare_pattern(traces.titles)) if traces.titles else None

    @cached_property
    def _whole(self) -> list[bytes]:
        texts = [form.encode() for text in self.traces.texts for form in written_forms(text)]
        return [*(request.encode() for request in self.traces.request_ids), *texts]

    def found_in(self, content: bytes, ids: "re.Pattern[bytes] | None") -> str | None:
        """What of it some bytes hold, in a word; None: nothing.

        Args:
            content: the bytes.
            ids: which of the patterns means these entities here; None: none does, they are of another domain.
        """
        if any(whole in content for whole in self._whole):
            return "text or request"
        if self._titles and self._titles.search(content):
            return "title"
        return "id" if ids and ids.search(content) else None


def _compiled(pattern: str) -> "re.Pattern[bytes]":
    return re.compile(pattern.encode(), re.MULTILINE)


def _any_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(re.escape(word) for word in sorted(set(words), key=lambda word: (-len(word), word)))})"


def _is_unmistakable(entity_id: str) -> bool:
    return len(entity_id) >= (_UNMISTAKABLE_DIGITS if entity_id.isdecimal() else _UNMISTAKABLE)
