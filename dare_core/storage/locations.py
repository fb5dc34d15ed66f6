"""Places that several machines share: a local folder, or a URL that an installed filesystem of fsspec serves.

A local place is a :class:`pathlib.Path`, any other an :class:`upath.UPath`; both are joined with ``/``. Files there are
read and written by the functions here and in :mod:`~dare_core.storage.atomic`. They ask a store that fails for the
moment again, notice what comes cut short, and word what goes wrong.
"""

import errno
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from dare_core.errors import SettingError, StorageError

Location = Path | UPath

#: A URL with a password, up to its end.
_PASSWORD: Final = re.compile(r"([a-z0-9+]+://)[^/@]*:.*@")
#: Characters of a problem that an error shows.
_SHOWN: Final = 300

#: For so many seconds after its first failure a store is asked again, after waits of these lengths.
_PATIENCE: Final = 30.0
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 5.0
#: Errors, and numbers of an OSError, that say the same when one asks again.
_LASTING: Final = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError, TypeError, ValueError)
_LASTING_NUMBERS: Final = frozenset((errno.EINVAL, errno.EMSGSIZE, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOSYS))
#: A longer file is read in pieces of so many bytes.
_PIECE: Final = 16 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stored:
    """A file as its folder lists it.

    Attributes:
        size: in bytes.
        written: the last time, in seconds since 1970.
    """

    path: Location
    size: int
    written: float


def location(root: str | Path) -> Location:
    """The place that a folder's path or a URL names.

    Raises:
        SettingError: no installed filesystem serves the URL; or it holds a password, which would stand in errors, on
            command lines and in the warehouse.
    """
    if isinstance(root, Path):
        return root
    if _PASSWORD.match(root):
        shown = _PASSWORD.sub(r"\1…@", root)
        raise SettingError(
            f"the URL {shown} holds a password; leave it out, and give it by environment variables of the storage's "
            "own, or fsspec's configuration"
        )
    if "://" not in root:
        return Path(root)
    try:
        fs, path = fsspec.core.url_to_fs(root)
    except (ValueError, ImportError) as error:
        raise SettingError(f"no installed filesystem serves the URL {root}: {error}") from None
    # Any file system object that writes to local folders is one, wrapped or not.
    return Path(path) if isinstance(fs, LocalFileSystem) else _remote_place(root)


def _remote_place(url: str) -> UPath:
    """What is listed is not kept, for other machines write too. Nobody but :func:`_tried` asks a second time.

    Clients of S3 would: botocore each request five times, and s3fs each of these five times, for many minutes.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3:", "s3a:")):
        told = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # by files or variables of fsspec's own
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": 1}, **told}
    place: UPath = UPath(url, **options)
    if hasattr(place.fs, "retries"):
        place.fs.retries = 1
    return place


def exists(path: Location) -> bool:
    """Whether there is such a file, or a folder with files."""
    return path.exists() if isinstance(path, Path) else _kind(path) is not None


def is_folder(path: Location) -> bool:
    """Whether it is a folder; a remote one has files."""
    return path.is_dir() if isinstance(path, Path) else _kind(path) == "directory"


def _kind(path: UPath) -> str | None:
    """``file``, ``directory``, or None where there is nothing; fsspec's own ``isdir`` calls any error an absence."""
    try:
        return str(_tried(path, "read", lambda: path.fs.info(path.path))["type"])
    except FileNotFoundError:
        return None


def matching(folder: Location, pattern: str = "*") -> list[Location]:
    """Files and folders of a folder whose names match a pattern, sorted by name; none where it is missing."""
    if isinstance(folder, Path):
        return [*sorted(folder.glob(pattern))]
    names = {Path(item["name"]).name for item in _listed(folder)} - {""}
    return [folder / name for name in sorted(names) if fnmatchcase(name, pattern)]


def files_in(folder: Location) -> list[Stored]:
    """The files of a folder, those of folders in it left out, sorted by name."""
    if isinstance(folder, Path):
        return [_stored(path) for path in sorted(folder.glob("*")) if path.is_file()]
    return sorted(_remote(folder, _listed(folder)), key=lambda file: file.path.name)


def files_below(folder: Location) -> list[Stored]:
    """All files of a folder and of those in it, sorted by path; one listing where the folder is remote."""
    if isinstance(folder, Path):
        return [_stored(path) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    with suppress(FileNotFoundError):
        found = _tried(folder, "read", lambda: folder.fs.find(folder.path, detail=True)).values()
        return sorted(_remote(folder, found), key=lambda file: str(file.path))
    return []


def read_bytes(path: Location) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be reached, or comes cut short.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    return _tried(path, "read", lambda: b"".join(_content(path)))


@contextmanager
def fetched(path: Location) -> Iterator[Path]:
    """A file as a local one for the time of a block: itself, or a copy.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be reached, or comes cut short.
    """
    if isinstance(path, Path):
        yield path
        return
    with TemporaryDirectory(prefix="dare-") as folder:
        copy = Path(folder) / path.name

        def fetch() -> None:
            with copy.open("wb") as file:
                for piece in _content(path):
                    file.write(piece)

        _tried(path, "read", fetch)
        yield copy


def _content(path: UPath) -> Iterator[bytes]:
    """A file in pieces, each as long as it must be: where a connection ends early, some clients take it for the end.

    The last is asked for without its end, so that a file that has grown meanwhile is noticed too.
    """
    found = path.fs.info(path.path)
    if found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "it is no file", str(path))
    size = int(found["size"])
    for start in range(0, size, _PIECE):
        end = start + _PIECE
        piece: bytes = path.fs.cat_file(path.path, start=start, end=None if end >= size else end)
        if len(piece) != min(end, size) - start:
            raise OSError(errno.EIO, f"it came cut short: {start + len(piece)} bytes of {size}")
        yield piece


def put(copy: Path, path: Location) -> None:
    """Store a local file under a remote path; it appears there when it is whole.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
    """
    assert not isinstance(path, Path)
    try:
        _tried(path, "written", lambda: path.fs.put_file(str(copy), path.path))
    except FileNotFoundError as error:  # the copy is there
        raise _worded(path, "written", error) from error


def remove(path: Location) -> None:
    """Remove a file; that it is gone already is fine."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        _tried(path, "removed", lambda: path.fs.rm_file(path.path))


def remove_folder(folder: Location) -> None:
    """Remove a folder and all that is in it; that it is gone already is fine."""
    if isinstance(folder, Path):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    with suppress(Exception):  # some stores do not take many removals at once, others do not say which they left out
        folder.fs.rm(folder.path, recursive=True)
    for file in files_below(folder):
        remove(file.path)


def _listed(folder: UPath) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        listed: list[dict[str, Any]] = _tried(folder, "read", lambda: folder.fs.ls(folder.path, detail=True))
        return listed
    return []


def _remote(folder: UPath, listed: Any) -> Iterator[Stored]:
    for item in listed:
        if item["type"] == "file" and (below := item["name"].removeprefix(folder.path).strip("/")):
            yield Stored(folder / below, int(item["size"]), _written(item))


def _stored(path: Path) -> Stored:
    status = path.stat()
    return Stored(path, status.st_size, status.st_mtime)


def _written(item: dict[str, Any]) -> float:
    at = next((item[key] for key in ("mtime", "LastModified", "created", "last_modified") if key in item), 0.0)
    return float(at.timestamp() if hasattr(at, "timestamp") else at)


def _tried(path: UPath, done: str, ask: Callable[[], _T]) -> _T:
    """What a store answers, asked again for as long as it is worth while.

    Args:
        path: what is asked about.
        done: to it, for the error.
        ask: may be called more than once.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: any other error of the store's, of which each filesystem has a kind of its own.
    """
    until, wait = None, _FIRST_WAIT
    while True:
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as error:
            until = until or time.monotonic() + _PATIENCE
            if _is_lasting(error) or time.monotonic() + wait > until:
                raise _worded(path, done, error) from error
        time.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - so that many workers do not come back as one
        wait = min(2 * wait, _LONGEST_WAIT)


def _is_lasting(error: Exception) -> bool:
    return (
        isinstance(error, _LASTING)
        or getattr(error, "errno", None) in _LASTING_NUMBERS
        or "Credentials" in type(error).__name__
    )


def _worded(path: UPath, done: str, error: Exception) -> StorageError:
    said = " ".join((getattr(error, "strerror", None) or str(error)).split())[:_SHOWN] or type(error).__name__
    return StorageError(
        f"{path} cannot be {done}: {said}; see that the storage is up, and that its address and credentials are right, "
        "and run the same again"
    )
