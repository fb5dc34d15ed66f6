"""What a prompt's template may name, and how a rendering keeps apart what is template and what is the source's.

Each value of a source enters the rendering as a sentinel, which is replaced when the template has been worked through.
So no value is ever read as template, and the text still knows which of its characters are the source's.
"""

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from dare_core.config.descriptions import Attributes, described, one_line, present, tidy, value_of
from dare_core.config.domains import Domain
from dare_core.errors import InputError
from dare_core.schemas import Kind

#: No template has this character, so that no template can write a sentinel.
SENTINEL: Final = "\0"
_SENTINEL: Final = re.compile(f"{SENTINEL}([0-9]+){SENTINEL}")
#: Characters of a prompt, and rounds of its loops.
_MOST_CHARACTERS: Final = 10_000_000
_MOST_ROUNDS: Final = 100_000

#: What a field is: a text; a row of fields by name; a list of one of both.
TEXT: Final = "text"
Row = Mapping[str, Any]
#: Fields of every template, from the domain's section [knowledge].
_WORDS: Final = ("noun", "plural", "history_of", "value_unit")
_ATTRIBUTE: Final[Row] = {"name": TEXT, "value": TEXT}


class Wording(str):
    """A rendered text that knows which of its characters come from the source.

    Attributes:
        spans: first character and end of each value of the source, in their order.
    """

    __slots__ = ("spans",)
    spans: tuple[tuple[int, int], ...]

    def __new__(cls, text: str = "", spans: Sequence[tuple[int, int]] = ()) -> "Wording":
        """The text, with nothing of the source in it unless said so."""
        made = super().__new__(cls, text)
        made.spans = tuple(spans)
        return made

    @property
    def template(self) -> list[str]:
        """The pieces that are the template's, around what is the source's."""
        ends = [0, *(end for _, end in self.spans)]
        begins = [*(begin for begin, _ in self.spans), len(self)]
        return [self[end:begin] for end, begin in zip(ends, begins, strict=True)]


class Rendering:
    """One rendering: the values that it has shown so far, and how much more it may do."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._characters = 0
        self._rounds = 0

    def sentinel(self, text: str) -> str:
        """What stands for a value until the template has been worked through."""
        self._count(len(text))
        self._texts.append(text)
        return f"{SENTINEL}{len(self._texts) - 1}{SENTINEL}"

    def round(self) -> None:
        """A round of a loop begins."""
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            raise InputError(f"the prompt's loops take more than {_MOST_ROUNDS} rounds; loop over less")

    def text(self, pieces: Iterator[str]) -> Wording:
        """What the template wrote, with the values in place of the sentinels.

        Line breaks at both ends are the template's, and left out.
        """
        written = []
        for piece in pieces:
            self._count(len(piece))
            written.append(piece)
        whole = "".join(written).strip("\n")
        parts, spans, length = [], [], 0
        for place, part in enumerate(_SENTINEL.split(whole)):
            shown = self._texts[int(part)] if place % 2 else part
            if place % 2:
                spans.append((length, length + len(shown)))
            parts.append(shown)
            length += len(shown)
        return Wording("".join(parts), spans)

    def _count(self, characters: int) -> None:
        self._characters += characters
        if self._characters > _MOST_CHARACTERS:
            raise InputError(f"the prompt has more than {_MOST_CHARACTERS} characters; let its template show less")


class Value:
    """A value of the source. It prints as a sentinel, is true where there is one, and compares as what it is.

    Attributes:
        raw: as the source has it.
        text: as prompts show it.
    """

    __slots__ = ("_rendering", "_there", "raw", "text")

    def __init__(self, rendering: Rendering, raw: object, text: str, there: bool) -> None:
        self._rendering, self.raw, self.text, self._there = rendering, raw, text, there

    def __str__(self) -> str:
        return self._rendering.sentinel(self.text) if self._there else ""

    def __bool__(self) -> bool:
        return self._there

    def __eq__(self, other: object) -> bool:
        return bool(self.raw == _raw(other))

    def __hash__(self) -> int:
        return hash(self.text)

    def __contains__(self, other: object) -> bool:
        return isinstance(self.raw, list | str) and _raw(other) in self.raw

    def __lt__(self, other: object) -> bool:
        return self._compared(operator.lt, other)

    def __le__(self, other: object) -> bool:
        return self._compared(operator.le, other)

    def __gt__(self, other: object) -> bool:
        return self._compared(operator.gt, other)

    def __ge__(self, other: object) -> bool:
        return self._compared(operator.ge, other)

    def _compared(self, compare: Callable[[Any, Any], bool], other: object) -> bool:
        try:
            return compare(self.raw, _raw(other))
        except TypeError:  # one that is missing, or text beside a number, is neither more nor less
            return False

    def changed(self, change: Callable[[str], str]) -> "Value":
        """The same with another text."""
        return Value(self._rendering, self.raw, change(self.text), self._there)


def _raw(value: object) -> Any:
    return value.raw if isinstance(value, Value) else value


class Rows:
    """A list that a template may loop over; each round counts."""

    def __init__(self, rendering: Rendering, rows: Sequence[Any]) -> None:
        self._rendering, self._rows = rendering, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            self._rendering.round()
            yield row


class Entity:
    """An item, a user or an entry of a history, its fields made when they are named."""

    def __init__(self, rendering: Rendering, domain: Domain, names: Sequence[str], attributes: Attributes) -> None:
        self._rendering, self._domain, self._names, self._attributes = rendering, domain, names, attributes

    def __getitem__(self, field: str) -> Any:
        match field:
            case "title":
                return self._value(self._attributes.get("title"))
            case "described":
                return self._text(described(self._attributes, tuple(self._names)))
            case "attributes":
                known = present(self._attributes, tuple(self._names))
                return Rows(
                    self._rendering,
                    [{"name": name.replace("_", " "), "value": self._value(value)} for name, value in known],
                )
            case "json":
                return self._text(self._json())
            case "value":
                raw = self._attributes.get("value")
                shown = f"{raw:g}" if isinstance(raw, float) else one_line(raw)
                return Value(self._rendering, raw, shown, raw is not None)
            case _:
                [name] = [name for name in self._names if field_name(name) == field][:1]
                return self._value(self._attributes.get(name))

    def _json(self) -> str:
        """One line: what is known of an item, and what a user made of it."""
        known = dict(present(self._attributes, ("title", *self._names))) | value_of(self._domain, self._attributes)
        return json.dumps({name: tidy(value) for name, value in known.items()}, ensure_ascii=False)

    def _text(self, text: str) -> Value:
        return Value(self._rendering, text, text, bool(text))

    def _value(self, raw: object) -> Value:
        there = raw not in (None, "", [])
        return Value(self._rendering, raw, one_line(raw) if there else "", there)


def field_name(column: str) -> str:
    """What a template calls a column."""
    return re.sub(r"\W", "_", column)


def fields(kind: Kind, items: Sequence[str], users: Sequence[str]) -> Row:
    """What a template of a kind may name: :data:`TEXT`, a row's fields, or a list of one of both.

    Args:
        kind: item or user.
        items: attributes of items.
        users: attributes of users.
    """
    words = {**dict.fromkeys(_WORDS, TEXT), "factors": [TEXT]}
    of_any = {"described": TEXT, "attributes": [_ATTRIBUTE]}
    of_item = {**_texts(items), **of_any, "title": TEXT, "json": TEXT}
    if kind == "item":
        return {**of_item, **words}
    return {**_texts(users), **of_any, **words, "history": [{**of_item, "value": TEXT}]}


def _texts(columns: Sequence[str]) -> Row:
    return {field_name(column): TEXT for column in columns}


def field_values(
    rendering: Rendering, domain: Domain, kind: Kind, attributes: Attributes, history: Sequence[Attributes]
) -> Callable[[str], Any]:
    """Gives what :func:`fields` names, of one entity.

    Args:
        rendering: that shows it.
        domain: what things are called in.
        kind: item or user.
        attributes: the entity's.
        history: the entries that a user's prompt shows.
    """
    words, items = domain.knowledge, domain.source.items.attributes
    entity = Entity(rendering, domain, items if kind == "item" else domain.source.users.attributes, attributes)

    def value(name: str) -> Any:
        match name:
            case "noun" | "plural" | "value_unit":
                return getattr(words, name)
            case "history_of":
                return words.history
            case "factors":
                return Rows(rendering, words.factors)
            case "history" if kind == "user":
                return Rows(rendering, [Entity(rendering, domain, items, entry) for entry in history])
            case _:
                return entity[name]

    return value
