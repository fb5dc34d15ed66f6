"""What the language model is asked, by framework.

KAR (arXiv 2306.10933, section 3.2) asks for *factual* knowledge of an item and for *reasoning* about a user's
preferences along scenario-specific factors.
"""

from collections.abc import Mapping
from typing import Any

from dare_core.domains import Domain
from dare_core.schemas import Kind


def render(domain: Domain, kind: Kind, attributes: Mapping[str, Any], dropped_history: int = 0) -> str:
    """The message that asks for knowledge of one entity.

    Args:
        domain: gives the nouns and factors.
        kind: item or user.
        attributes: the entity's, as ``schemas.ENTITY`` holds them.
        dropped_history: how many of the oldest history entries are left out.
    """
    factors = ", ".join(domain.knowledge.factors)
    if kind == "item":
        return (
            f"Introduce the {domain.knowledge.noun} {_item(domain, attributes)} and describe its attributes, "
            f"including but not limited to {factors}."
        )
    described = _described(attributes, domain.source.users.attributes)
    history = attributes.get("history", [])[dropped_history:]
    lines = "\n".join(_history_line(domain, entry) for entry in history) or "(no entries)"
    words = domain.knowledge
    return (
        f"A user{f' ({described})' if described else ''} has this {words.noun} {words.history} history, oldest first:\n"
        f"{lines}\n"
        f"Analyse the user's preferences in {words.plural}, considering factors such as {factors}. "
        f"Explain them clearly from details of the {words.history} history."
    )


def _history_line(domain: Domain, entry: Mapping[str, Any]) -> str:
    value = f"{entry['value']:g}" if isinstance(entry["value"], float) else str(entry["value"])
    return f'- "{_text(entry["title"])}": {value} {domain.knowledge.value_unit}'


def _item(domain: Domain, attributes: Mapping[str, Any]) -> str:
    described = _described(attributes, domain.source.items.attributes)
    return f'"{_text(attributes["title"])}"' + (f" ({described})" if described else "")


def _described(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    present = ((name, attributes.get(name)) for name in names)
    return "; ".join(
        f"{name.replace('_', ' ')} {_text(value)}" for name, value in present if value not in (None, "", [])
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    return " ".join(str(value).split())  # a title must not lay out the prompt
