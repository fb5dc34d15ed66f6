"""Which retrieval pool an entity's text belongs to: items by attribute, users by collaborative cluster.

Knows entities and groups, not texts; never imports Spark. What a grouping has learned is a :class:`GroupModel`,
versioned beside the pools by a :class:`GroupModelStore`.
"""

from dare_core.grouping.attributes import AttributeGroups, group_name
from dare_core.grouping.clusters import ItemFactors, UserClusters
from dare_core.grouping.model import CLUSTER_ASSIGNMENT, GroupModel, GroupModelStore, StoredModel, reassigned
from dare_core.grouping.router import GroupRule, Routed, route

__all__ = [
    "CLUSTER_ASSIGNMENT",
    "AttributeGroups",
    "GroupModel",
    "GroupModelStore",
    "GroupRule",
    "ItemFactors",
    "Routed",
    "StoredModel",
    "UserClusters",
    "group_name",
    "reassigned",
    "route",
]
