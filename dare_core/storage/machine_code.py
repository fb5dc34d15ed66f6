"""Compiled functions, and the folders that keep their machine code from one process to the next.

Machine code holds that of the functions it calls, and the constants that they read. Numba's own cache looks at one file
only, the function's: after an upgrade it ran code that was made from former constants of other files, and read out of
bounds. So here a folder is named by all that the code in it is made from: the sources of its module and of all modules
of the package that this imports, directly or not, and the versions of Numba and NumPy.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.dispatcher import Dispatcher

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

#: Of each module the newest folders are kept: several installations, or branches, may be at work.
_KEPT: Final = 8
_PACKAGE: Final = Path(__file__).parents[1]
_IMPORT: Final = re.compile(
    rf"^\s*(?:from ({_PACKAGE.name}[\w.]*) import (\([^)]*\)|.*)|import ({_PACKAGE.name}[\w.]*))", re.MULTILINE
)


def compiled(function: Function) -> "Dispatcher[Function]":
    """Compile a function at its first call, once a host for the same sources. It runs without Python's lock.

    Machine code is kept below ``NUMBA_CACHE_DIR``, or where that is not set in the user's cache.
    """
    dispatcher = numba.njit(nogil=True)(function)
    dispatcher._cache = _Cache(function)  # type: ignore[attr-defined, no-untyped-call]
    return dispatcher


class _Locator(_CacheLocator):
    """Says where the machine code of a function is kept."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file, self._line = file, function.__code__.co_firstlineno
        self._module = function.__module__
        self._folder = _cache() / f"{self._module}-{_sources(Path(file))}"

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return ""  # the folder's name says it

    def get_disambiguator(self) -> str:
        return str(self._line)

    def ensure_cache_path(self) -> None:
        """Called before something is written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folders = sorted(self._folder.parent.glob(f"{self._module}-*"), key=lambda path: path.stat().st_mtime)
        for old in folders[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012  as Numba has it


class _Cache(FunctionCache):
    _impl_class = _Implementation

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        """Around reading and writing: without kept machine code, a function is compiled."""
        try:
            yield
        except (OSError, EOFError, UnpicklingError) as error:
            log.warning("machine code cannot be kept in %s, each process compiles anew: %s", self.cache_path, error)


def _cache() -> Path:
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("NUMBA_CACHE_DIR") or Path(user).expanduser() / "dare" / "compiled")


@cache
def _sources(file: Path) -> str:
    """What stands for a module's source and all that may get into its machine code."""
    found, new = set[Path](), {file}
    while new:
        found |= new
        new = {path for one in new for path in _imported(one)} - found
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in found]
    return hashlib.sha256(" ".join([numba.__version__, np.__version__, *sorted(parts)]).encode()).hexdigest()[:16]


@cache
def _imported(file: Path) -> frozenset[Path]:
    """The modules of the package that a module names in its import statements, wherever in it these stand."""
    names = set[str]()
    for package, members, module in _IMPORT.findall(file.read_text("utf-8")):
        names |= {package or module, *(f"{package}.{member}" for member in re.findall(r"\w+", members))}
    places = [_PACKAGE.parent.joinpath(*name.split(".")) for name in names]
    files = [path for place in places for path in (place / "__init__.py", place.parent / f"{place.name}.py")]
    return frozenset(filter(Path.is_file, files))
