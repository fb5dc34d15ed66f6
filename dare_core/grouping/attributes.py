"""Groups by the value of one attribute; rare values share a group."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dare_core.config.domains import AttributeGrouping

#: The group of an entity that lacks the attribute.
UNKNOWN: Final = "unknown"

#: What the pool of all texts is called, so no group may be.
_GLOBAL: Final = "*"
_LONGEST_NAME: Final = 64
#: Between the values of a combination.
_JOINT: Final = " + "


def group_name(value: Any, several: str = "first") -> str:
    """The group that an attribute's value (as JSON knows it) names: one printable line of 64 characters at most.

    Args:
        value: a text, number or list of them; None and what leaves no printable character are :data:`UNKNOWN`.
        several: of a list, ``first`` takes the first value, ``all`` the values joined in the order of the alphabet.
    """
    if isinstance(value, list):
        named = [name for name in map(group_name, value[:1] if several == "first" else value) if name != UNKNOWN]
        value = _JOINT.join(sorted(set(named))) or None
    if value is None:
        return UNKNOWN
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    one_line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    name = one_line[:_LONGEST_NAME].strip()
    return UNKNOWN if name in ("", _GLOBAL) else name


@dataclass(frozen=True)
class AttributeGroups:
    """Which values of an attribute are frequent enough for a group of their own.

    Attributes:
        attribute: the attribute's name.
        several: how a list names a group; see :func:`group_name`.
        rest: the group of all other values.
        names: the groups of their own, in the order of the alphabet.
    """

    attribute: str
    several: str
    rest: str
    names: tuple[str, ...]

    @classmethod
    def fit(
        cls,
        attribute: str,
        scheme: AttributeGrouping,
        counts: Mapping[str, int],
        previous: "AttributeGroups | None" = None,
    ) -> "AttributeGroups":
        """Give a group to every name that ``scheme.min_count`` entities bear.

        A name that had a group keeps it down to half of that count, so that a value near the bound does not come and
        go from run to run.

        Args:
            attribute: the attribute's name.
            scheme: the domain's configuration.
            counts: entities by :func:`group_name` of their value.
            previous: what the last run decided; of another attribute or way to name, it does not count.
        """
        same = previous is not None and (previous.attribute, previous.several) == (attribute, scheme.several)
        had = set(previous.names) if previous is not None and same else set[str]()
        kept = {name for name, count in counts.items() if 2 * count >= scheme.min_count and name in had}
        found = {name for name, count in counts.items() if count >= scheme.min_count}
        return cls(attribute, scheme.several, scheme.rest, tuple(sorted((kept | found) - {UNKNOWN})))

    def name(self, attributes: Mapping[str, Any]) -> str:
        """The group's name that an entity's attributes bear, whether or not it is frequent."""
        return group_name(attributes.get(self.attribute), self.several)
