"""What a vector is made of: the text that the model wrote, alone or beside what the source says of its entity.

The form is a setting of the domain (``[knowledge] embedded``) and is stored beside every vector:

- ``answer``: the text alone;
- ``attributes+answer``: the entity's attributes, and the text;
- ``history+answer``: of a user the history, and the text; of an item, which has none, the attributes, and the text.

LLM-Rec (arXiv 2307.15780) finds a description and what a model wrote of it better together than either. The
parts are embedded apart (:func:`dare_core.embedding.combination.combined`), so that a long history cannot push the text
out of what the encoder reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dare_core.config.descriptions import Attributes, described, history_line, is_titled, one_line
from dare_core.config.domains import Domain, Form
from dare_core.config.kinds import Kind

#: UTF-8 bytes of a history at most, its newest entries: about what the bundled encoder reads in 256 word pieces, where
#: titles are short. Of a longer one it would read the oldest entries.
HISTORY_BYTES: Final = 600


@dataclass(frozen=True)
class Passage:
    """What one vector is made of.

    Attributes:
        form: what it is stored as.
        parts: texts, the answer last; one where the entity has neither attributes nor history.
    """

    form: Form
    parts: tuple[str, ...]


def passage(
    domain: Domain, kind: Kind, form: Form, attributes: Attributes | None, text: str, as_of: datetime | None = None
) -> Passage:
    """What the vector of an entity's text is made of.

    Args:
        domain: names attributes and values.
        kind: item or user.
        form: that is asked for.
        attributes: the entity's, as ``schemas.ENTITY`` holds them; None: it is gone, and its text is embedded alone, in
            form ``answer``.
        text: that the model wrote.
        as_of: the newest moment that a history may show, the text's ``data_as_of``; None: the history ends there.
    """
    if form == "answer" or attributes is None:
        return Passage("answer", (text,))
    of_history = form == "history+answer" and kind == "user"
    said = describe_history(domain, attributes, as_of) if of_history else describe(domain, kind, attributes)
    return Passage(form, (said, text) if said else (text,))


def describe(domain: Domain, kind: Kind, attributes: Attributes) -> str:
    """An entity's title and attributes as one line, without a user's history; empty where there are none."""
    spec = domain.source.items if kind == "item" else domain.source.users
    known = described(attributes, spec.attributes)
    if not is_titled(attributes):
        return known
    title = one_line(attributes["title"])
    return f"{title} ({known})" if known else title


def describe_history(domain: Domain, attributes: Attributes, as_of: datetime | None = None) -> str:
    """A user's history as prompts list it, a line an entry, the newest last; empty where there is none.

    Args:
        domain: names values.
        attributes: the user's.
        as_of: later entries are left out, and those whose time is not known; None: all are shown.

    Returns:
        The newest entries that have room in :data:`HISTORY_BYTES`, one at least.
    """
    entries = [entry for entry in attributes.get("history") or [] if is_titled(entry)]
    if as_of is not None:
        entries = [entry for entry in entries if _is_known_by(entry, as_of)]
    return "\n".join(_newest([history_line(domain, entry) for entry in entries]))


def _is_known_by(entry: Attributes, moment: datetime) -> bool:
    if entry.get("time") is None:
        return False
    time = datetime.fromisoformat(str(entry["time"]))
    return (time if time.tzinfo else time.replace(tzinfo=UTC)) <= moment


def _newest(lines: Sequence[str]) -> list[str]:
    kept: list[str] = []
    room = HISTORY_BYTES
    for line in reversed(lines):
        room -= len(line.encode()) + 1
        if room < 0 and kept:
            break
        kept.append(line)
    return kept[::-1]
