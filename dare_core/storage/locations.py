"""Places that several machines share: a local folder, or a URL that an installed filesystem of fsspec serves.

A local place is a :class:`pathlib.Path`, any other an :class:`upath.UPath`; both are joined with ``/``. Files there are
read and written by the functions here and in :mod:`~dare_core.storage.atomic`, which word what goes wrong.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from dare_core.errors import SettingError, StorageError

Location = Path | UPath

#: A URL with a password, up to its end.
_PASSWORD: Final = re.compile(r"([a-z0-9+]+://)[^/@]*:.*@")
#: Characters of a problem that an error shows.
_SHOWN: Final = 300


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
    # Any file system object that writes to local folders is one, wrapped or not. Others machines write too: what is
    # listed is not kept.
    return Path(path) if isinstance(fs, LocalFileSystem) else UPath(root, use_listings_cache=False)


def exists(path: Location) -> bool:
    """Whether there is such a file, or a folder with files."""
    if isinstance(path, Path):
        return path.exists()
    with _reached(path):
        return bool(path.fs.exists(path.path))


def is_folder(path: Location) -> bool:
    """Whether it is a folder; a remote one has files."""
    if isinstance(path, Path):
        return path.is_dir()
    with _reached(path):
        return bool(path.fs.isdir(path.path))


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
    with _reached(folder), suppress(FileNotFoundError):
        found = folder.fs.find(folder.path, detail=True).values()
        return sorted(_remote(folder, found), key=lambda file: str(file.path))
    return []


def read_bytes(path: Location) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be reached.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    with _reached(path):
        content: bytes = path.fs.cat_file(path.path)
        return content


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
        with _reached(path):
            path.fs.get_file(path.path, str(copy))
            size = path.fs.size(path.path)
        if copy.stat().st_size != size:
            raise StorageError(f"{path} came cut short: {copy.stat().st_size} bytes of {size}; run the same again")
        yield copy


def put(copy: Path, path: Location) -> None:
    """Store a local file under a remote path; it appears there when it is whole.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
    """
    assert not isinstance(path, Path)
    with _reached(path, "written"):
        path.fs.put_file(str(copy), path.path)


def remove(path: Location) -> None:
    """Remove a file; that it is gone already is fine."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with _reached(path, "removed"), suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def remove_folder(folder: Location) -> None:
    """Remove a folder and all that is in it; that it is gone already is fine."""
    if isinstance(folder, Path):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    with _reached(folder, "removed"), suppress(FileNotFoundError):
        folder.fs.rm(folder.path, recursive=True)


def _listed(folder: UPath) -> list[dict[str, Any]]:
    with _reached(folder), suppress(FileNotFoundError):
        listed: list[dict[str, Any]] = folder.fs.ls(folder.path, detail=True)
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


@contextmanager
def _reached(path: UPath, done: str = "read") -> Iterator[None]:
    """Word what goes wrong at a store: each filesystem has errors of its own kind.

    Raises:
        StorageError: in place of anything but FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        said = " ".join((os.strerror(number) if number else str(error)).split())[:_SHOWN] or type(error).__name__
        raise StorageError(f"{path} cannot be {done}: {said}; run the same again") from error
