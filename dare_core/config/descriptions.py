"""An entity in words, as its domain names things: what prompts show of it, and what is embedded beside its text."""

from collections.abc import Mapping
from typing import Any

from dare_core.config.domains import Domain

Attributes = Mapping[str, Any]


def is_titled(attributes: Attributes) -> bool:
    """Whether an item, or an entry of a history, has a title that says something."""
    title = attributes.get("title")
    return title is not None and bool(one_line(title))


def described(attributes: Attributes, names: tuple[str, ...]) -> str:
    """One line: the attributes of these names that have a value, each with its name; empty where none has."""
    return "; ".join(f"{name.replace('_', ' ')} {one_line(value)}" for name, value in present(attributes, names))


def history_line(domain: Domain, entry: Attributes) -> str:
    """One line: the title of an entry of a history, and what the user made of it."""
    shown = f'- "{one_line(entry["title"])}"'
    for unit, value in value_of(domain, entry).items():
        shown += f": {f'{value:g}' if isinstance(value, float) else one_line(value)} {unit}"
    return shown


def value_of(domain: Domain, entry: Attributes) -> dict[str, Any]:
    """What the user made of an item, by its unit; empty where the source does not say."""
    return {} if entry.get("value") is None else {domain.knowledge.value_unit: tidy(entry["value"])}


def present(attributes: Attributes, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The attributes of these names that have a value, in the order of the names."""
    found = ((name, attributes.get(name)) for name in names)
    return [(name, value) for name, value in found if value not in (None, "", [])]


def one_line(value: object) -> str:
    """A value as text without line breaks: a title must not lay out the prompt."""
    if isinstance(value, list):
        return ", ".join(one_line(part) for part in value)
    return " ".join(str(value).split())


def tidy(value: object) -> object:
    """As :func:`one_line`, of what JSON shows as more than text."""
    if isinstance(value, list):
        return [tidy(part) for part in value]
    return one_line(value) if isinstance(value, str) else value
