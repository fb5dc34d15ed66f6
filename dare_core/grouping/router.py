"""Which rule gives an entity its group."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dare_core.grouping.attributes import UNKNOWN, AttributeGroups

#: ``cluster``: a user with enough interactions, by taste. ``attribute``: by its attribute's value. ``rest``: by a value
#: too rare for a group of its own. ``unknown``: the entity lacks the attribute.
GroupRule = Literal["cluster", "attribute", "rest", "unknown"]


class Routed(NamedTuple):
    """A group, and the rule that led to it."""

    group: str
    rule: GroupRule


def route(groups: AttributeGroups, attributes: Mapping[str, Any], cluster: str | None = None) -> Routed:
    """The cluster where the entity has one; else, at its cold start, the group of its attribute.

    Args:
        groups: the kind's attribute groups.
        attributes: the entity's, as ``schemas.ENTITY`` holds them.
        cluster: the name of its collaborative cluster; None without enough interactions.
    """
    if cluster is not None:
        return Routed(cluster, "cluster")
    name = groups.name(attributes)
    if name == UNKNOWN:
        return Routed(UNKNOWN, "unknown")
    return Routed(name, "attribute") if name in groups.names else Routed(groups.rest, "rest")
