"""What samples and counts amount to: did anything fail, or grow?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.soak.samples import Sample, quantiles
from bench.soak.tally import Tally


def figures_of(samples: Sequence[Sample], tally: Tally, readers: int) -> dict[str, Any]:
    """What :func:`~bench.soak.run.bench_soak` returns."""
    latencies = np.frombuffer(tally.latencies, np.float32) if tally.latencies else np.empty(0, np.float32)
    third = len(latencies) // 3
    first, last = quantiles(latencies[:third]), quantiles(latencies[-third:] if third else latencies)
    at = [sample.at for sample in samples]
    lasting = [name for name in samples[0].memory if name != "refresh"]
    return {
        "minutes": round(at[-1] / 60, 1),
        "readers": readers,
        **{name: tally.counts[name] for name in ("failed_queries", "failed_refreshes", "failed_publications")},
        "failed_follows": tally.counts["failed_follows"],
        "errors": tally.errors,
        "queries": len(latencies),
        "refreshes": tally.counts["refreshes"],
        "publications": tally.counts["publications"],
        "publications_lost": tally.counts["publications_lost"],
        "pools_built_again": tally.counts["pools_built_again"],
        "versions_followed": len(tally.versions),
        "texts_compared": tally.counts["texts_compared"],
        "texts_different": tally.counts["texts_different"],
        "p50_ms_first_third": first[0],
        "p50_ms_last_third": last[0],
        "p95_ms_first_third": first[1],
        "p95_ms_last_third": last[1],
        "growth": {
            "memory_mb": {name: growth(at, [sample.memory[name] for sample in samples]) for name in lasting},
            "open_files": {name: growth(at, [sample.files[name] for sample in samples]) for name in lasting},
            "connections": growth(at, [sample.connections for sample in samples]),
        },
        "refreshed_at": [round(moment, 1) for moment in tally.refreshed_at],
        "samples": [vars(sample) for sample in samples],
    }


def growth(at: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Whether a series grows.

    Returns:
        ``per_hour``: the slope of the second half; ``ratio``: the mean of the last third over that of the middle one.
    """
    half, third = len(at) // 2, len(at) // 3
    slope = float(np.polyfit(at[half:], values[half:], 1)[0]) * 3600 if len(at) - half > 1 else 0.0
    middle, last = np.mean(values[third : 2 * third] or values), np.mean(values[2 * third :] or values)
    return {"per_hour": round(slope, 2), "ratio": round(float(last / middle), 4) if middle else 1.0}
