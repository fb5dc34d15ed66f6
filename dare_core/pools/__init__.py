"""Customized Retrieval Pools (paper section 4.1): earlier texts, split by group, that draft trees are cut from.

Knows tokens and groups, not models; never imports torch.
"""

from dare_core.pools.drafter import PoolDrafter
from dare_core.pools.store import GLOBAL_GROUP, Pool, PoolManifest, PoolStore

__all__ = ["GLOBAL_GROUP", "Pool", "PoolDrafter", "PoolManifest", "PoolStore"]
