"""A worker's memory on a pool that another worker uses: ``python -m bench.pool_worker ROOT QUERIES``.

Opens the pool, drafts for every query, and prints how many MB of memory that no other process shares this took beside
what the interpreter and the compiled code hold. Ends when its standard input does.
"""

import sys
from pathlib import Path
from typing import Final

import numpy as np

from dare_core.drafts import Context
from dare_core.pools import Pool, PoolDrafter, PoolStore

_SMAPS: Final = Path("/proc/self/smaps_rollup")
_NODES: Final = 64


def private_mb() -> float:
    """Megabytes of this process's memory that no other process has mapped."""
    lines = (line.split() for line in _SMAPS.read_text().splitlines() if line.startswith("Private_"))
    return sum(int(line[1]) for line in lines) / 1024


def main() -> None:
    """See the module."""
    root, queries = Path(sys.argv[1]), np.load(sys.argv[2])
    contexts = [Context("bench", query, 0, len(query)) for query in queries]
    drafter = PoolDrafter(None)
    drafter.draft(contexts[:2], _NODES)  # compiled code is loaded
    before = private_mb()
    drafter = PoolDrafter(Pool.open(PoolStore(root), "bench"))
    for context in contexts:
        drafter.draft([context], _NODES)
    print(round(private_mb() - before, 2), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
