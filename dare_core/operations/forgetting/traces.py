"""What gives an entity away: its id where it is named as one, its requests, its texts, its title.

Ids are often short numbers, which stand everywhere and mean nothing. So an id counts where it follows the name of its
kind or of its column, and by itself only where it is long enough to be nothing else.
"""

import html
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from dare_core.schemas import Kind
from dare_core.storage.words import Words
from dare_core.warehouse.entities import tombstone

#: SQL: a row is about the entities whose :attr:`Entities.bound` is bound.
OWN: Final = "domain = %(domain)s AND kind = %(kind)s AND entity_id = ANY(%(ids)s::text[])"

#: Shorter texts and titles may well be somebody else's.
SHORTEST_TEXT: Final = 20
SHORTEST_TITLE: Final = 4
#: From so many characters on an id by itself counts; of an id of digits, from so many digits on.
_UNMISTAKABLE: Final = 5
_UNMISTAKABLE_DIGITS: Final = 10

#: Ids that a sentence names.
_SHOWN: Final = 10

#: Where a word begins and ends (numbers end no sooner than their decimals
#: do), and what stands between a column's name and its value in JSON, HTML or a list of options.
_BEGIN: Final = r"(?:^|[^\w-])"
_BEGIN_AT: Final = re.compile(rb"[\w-]")
_END: Final = r"(?:[^\w.-]|\.\D|\.?$)"
_BETWEEN: Final = r"(?:&#?\w+;|\W){1,8}"


def shown(ids: Sequence[str]) -> str:
    """Ids as a sentence names them: the first of many, and how many more there are."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


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
        return f"{self.kind} {shown(self.ids)} of {self.domain}"


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
    """A regular expression that finds the ids where they are named as such.

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
    """Traces and ids, made ready to be looked for in bytes, all in one pass.

    Args:
        who: the entities.
        traces: theirs.
        columns: see :func:`id_pattern`.

    Attributes:
        columns: names that ids follow.
        named: finds ids where they are named as such.
        in_cells: finds them where they are all of a table's cell or of a quoted string.
        bare: finds them as words by themselves.
    """

    def __init__(self, who: Entities, traces: Traces, columns: Iterable[str] = ()) -> None:
        self.who, self.traces = who, traces
        self.columns = ("entity_id", *columns)
        forms = _any_of(form for entity_id in who.ids for form in written_forms(entity_id))
        self.named = _compiled(id_pattern(who, columns))
        self.in_cells = _compiled(f'[">]\\s*{forms}\\s*["<]')
        self.bare = _compiled(bare_pattern(who.ids))
        self._after_name = _compiled(f"(?:{who.kind}\\s+|{_any_of(self.columns)}{_BETWEEN}){forms}{_END}")

    @cached_property
    def _words(self) -> tuple[Words, NDArray[np.int64]]:
        """All that is looked for, and what each is."""
        unmistakable = [entity_id for entity_id in self.who.ids if _is_unmistakable(entity_id)]
        meant: dict[bytes, int] = {name.encode(): _NAME for name in (self.who.kind, *self.columns)}
        for meaning, told in ((_ID, unmistakable), (_TITLE, self.traces.titles), (_WHOLE, self.traces.texts)):
            meant |= {form.encode(): meaning for word in told for form in written_forms(word)}
        meant |= {request.encode(): _WHOLE for request in self.traces.request_ids}
        words = Words(meant)
        return words, np.array([meant[word] for word in words.words], np.int64)

    def places(self, content: bytes, ids: "re.Pattern[bytes] | None") -> Iterator[tuple[int, str]]:
        """Where some bytes hold something of it, and what, in a word.

        Args:
            content: the bytes.
            ids: which of the patterns means these entities here; None: none does, they are of another domain.
        """
        words, meanings = self._words
        for at, which in zip(*words.find(content), strict=True):
            meaning, word = meanings[which], words.words[which]
            if meaning == _WHOLE:
                yield int(at), "text or request"
            elif meaning == _NAME:
                if ids is self.named and _begins(content, at) and self._after_name.match(content, at):
                    yield int(at), "id"
            elif _begins(content, at) and _ENDS.match(content, at + len(word)):
                if meaning == _TITLE:
                    yield int(at), "title"
                elif ids is self.named:
                    yield int(at), "id"
        if ids is not None and ids is not self.named:
            yield from ((match.start(), "id") for match in ids.finditer(content))

    def found_in(self, content: bytes, ids: "re.Pattern[bytes] | None") -> str | None:
        """What of it some bytes hold, in a word; None: nothing. For both see :meth:`places`."""
        return next((what for _, what in self.places(content, ids)), None)


def _begins(content: bytes, at: int) -> bool:
    """Whether a word may begin there; see :data:`_BEGIN`."""
    return at == 0 or not _BEGIN_AT.match(content, at - 1)


class Shared:
    """Texts and titles, looked for in what others' rows say.

    Args:
        texts: as the warehouse holds them.
        titles: likewise; they count as words by themselves.
    """

    def __init__(self, texts: Iterable[str], titles: Iterable[str]) -> None:
        self._texts = {text.encode(): text for text in texts}
        self._titles = {form.encode(): title for title in titles for form in written_forms(title)}
        self._words = Words([*self._texts, *self._titles])

    def found_in(self, content: bytes, known: Collection[str]) -> set[str]:
        """Those that some bytes hold; of ``known`` ones nobody asks."""
        found = set[str]()
        for at, which in zip(*self._words.find(content), strict=True):
            word = self._words.words[which]
            text, title = self._texts.get(word), self._titles.get(word)
            if text is not None:
                found.add(text)
            if title is None or title in known or title in found:
                continue
            if _begins(content, at) and _ENDS.match(content, at + len(word)):
                found.add(title)
        return found


#: What a word that is found means: a text or a request, whole; a title or an id, if it stands by itself; the name of a
#: kind or column, if an id follows.
_WHOLE, _TITLE, _ID, _NAME = range(4)
_ENDS: Final = re.compile(_END.encode(), re.MULTILINE)


def _compiled(pattern: str) -> "re.Pattern[bytes]":
    return re.compile(pattern.encode(), re.MULTILINE)


def _any_of(words: Iterable[str]) -> str:
    """A pattern of some words, the longest that fits; of many it looks at what they have in common once."""
    return _branches(sorted(set(words)))


def _branches(words: list[str]) -> str:
    if len(words) == 1:
        return re.escape(words[0])
    differ = (k for k, (one, other) in enumerate(zip(words[0], words[-1], strict=False)) if one != other)
    common = next(differ, len(words[0]))  # of the first and the last of sorted words, and so of all
    ends = words[0] == words[0][:common]
    parts = [
        _branches([word[common:] for word in of_letter])
        for _, of_letter in groupby(words[ends:], lambda word: word[common])
    ]
    return f"{re.escape(words[0][:common])}(?:{'|'.join(parts)}){'?' if ends else ''}"


def _is_unmistakable(entity_id: str) -> bool:
    return len(entity_id) >= (_UNMISTAKABLE_DIGITS if entity_id.isdecimal() else _UNMISTAKABLE)
