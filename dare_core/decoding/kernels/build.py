"""Compile the kernels for the processor at hand.

The library is kept in the user's cache folder, one for each version of the sources and kind of processor.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from dare_core.storage.atomic import appearing

_FOLDER: Final = Path(__file__).parent
#: Includes all others, so that one run of the compiler sees everything it could inline.
_MAIN: Final = "kernels.cpp"
_OPTIONS: Final = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-pthread")


def built() -> Path:
    """The compiled library; compiles it where this version was not yet.

    Raises:
        OSError: there is no compiler, or the cache folder cannot be written.
        subprocess.CalledProcessError: the compiler refused.
    """
    sources = [path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in {".cpp", ".h"}]
    key = hashlib.sha256(b"\0".join([*sources, " ".join(_OPTIONS).encode(), _processor().encode()])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dare"
    library = folder / f"kernels-{key}.so"
    if library.exists():
        return library
    compiler = next(
        (found for name in (os.environ.get("CXX"), "c++", "g++") if name and (found := shutil.which(name))), ""
    )
    if not compiler:
        raise OSError("there is no C++ compiler on PATH")
    with appearing(library) as made:  # several processes may compile at once
        subprocess.run(
            [compiler, *_OPTIONS, "-shared", "-fPIC", str(_FOLDER / _MAIN), "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
        )
    return library


def _processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
