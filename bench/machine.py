"""Where figures were taken and with what: processor, instruction sets, versions, date."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

#: What linear layers can gain from, as Linux names it on x86 and on ARM.
_TELLING: Final = (
    "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_OURS: Final = ("dare-platform", "torch", "transformers", "numpy", "numba")


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """``processor``, ``cores`` that this process may use, ``instruction_sets``, ``date`` and ``versions`` of our side.

    Args:
        cpuinfo: what Linux says of the processors.
    """
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in _TELLING if name in flags],
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _OURS}},
    }
