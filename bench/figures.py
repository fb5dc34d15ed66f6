"""What the measured speeds say: the ratios that the project holds itself to."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from bench.contenders import OURS, PEERS

#: Batch sizes whose figures are always named.
_SIZES: Final = (1, 4, 16, 32)
#: Those at which arithmetic and not memory is the limit.
_BUSY: Final = (16, 32)
_UNDRAFTED: Final = tuple(name for name in OURS if name.endswith("undrafted"))
_DRAFTED: Final = tuple(name for name in OURS if name not in _UNDRAFTED)
#: vLLM in full precision.
_VLLM_FP32: Final = ("vllm", "vllm_ngram", "vllm_suffix")

Ratio = float | None


def ratios(speeds: Mapping[str, float], sizes: Sequence[int]) -> dict[str, Ratio]:
    """Ratios of tokens per second; None where a part of one was not measured.

    Args:
        speeds: by contender and batch size, such as ``fp32_relaxed_b16``.
        sizes: batch sizes that were measured.
    """

    def best(names: Iterable[str], size: int) -> float | None:
        return max((speeds[f"{name}_b{size}"] for name in names if f"{name}_b{size}" in speeds), default=None)

    def over(ours: Iterable[str], theirs: Iterable[str], size: int) -> Ratio:
        return _ratio(best(ours, size), best(theirs, size))

    named = sorted({*_SIZES, *sizes})
    relaxed_over_strict = [
        ratio
        for name in OURS
        if name.endswith("relaxed")
        for size in named
        if (ratio := over([name], [name.replace("relaxed", "strict")], size)) is not None
    ]
    fp32 = ("fp32_relaxed",)
    return {
        **{f"best_vs_peers_b{size}": over(_DRAFTED, PEERS, size) for size in named},
        **{f"best_over_undrafted_b{size}": over(_DRAFTED, _UNDRAFTED, size) for size in named},
        **{f"fp32_relaxed_over_undrafted_b{size}": over(fp32, ["fp32_undrafted"], size) for size in named},
        **{f"fp32_vs_vllm_b{size}": over(fp32, _VLLM_FP32, size) for size in named},
        **{f"int8_over_fp32_b{size}": over(["int8_undrafted"], ["fp32_undrafted"], size) for size in _BUSY},
        "relaxed_over_strict_worst": min(relaxed_over_strict, default=None),
        # Beside transformers as one would run it; of either what batch size suits it best.
        **{f"{mode}_b1_vs_generate": over([f"fp32_{mode}"], ["generate"], 1) for mode in ("strict", "relaxed")},
        **{
            f"{mode}_best_vs_generate_best": _ratio(_at_any(f"fp32_{mode}", speeds), _at_any("generate", speeds))
            for mode in ("strict", "relaxed")
        },
    }


def _at_any(name: str, speeds: Mapping[str, float]) -> float | None:
    return max((speed for at, speed in speeds.items() if re.fullmatch(rf"{name}_b\d+", at)), default=None)


def _ratio(ours: float | None, theirs: float | None) -> Ratio:
    return None if ours is None or theirs is None else round(ours / theirs, 3)
