"""Customized Retrieval Pools (paper section 4.1): earlier texts, split by group, that draft trees are cut from.

Knows tokens and groups, not models; never imports torch.
"""

from dare_core.pools.builder import PoolBuilder
from dare_core.pools.drafter import PoolDrafter
from dare_core.pools.eviction import Limits
from dare_core.pools.manifest import GLOBAL_GROUP, PoolManifest
from dare_core.pools.reader import Pool
from dare_core.pools.store import PoolStore

__all__ = ["GLOBAL_GROUP", "Limits", "Pool", "PoolBuilder", "PoolDrafter", "PoolManifest", "PoolStore"]
