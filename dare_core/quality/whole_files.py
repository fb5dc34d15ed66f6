"""Where Great Expectations keeps its files: a local folder or a URL, where each is there whole or not at all."""

from functools import cached_property
from typing import Any, Final

from great_expectations.data_context.store.tuple_store_backend import TupleStoreBackend
from great_expectations.exceptions import InvalidKeyError

from dare_core.storage.atomic import storing, write_atomically
from dare_core.storage.locations import Location, exists, files_below, location, read_bytes

#: Folder of stylesheets, fonts and images, which all pages share. They alone come as bytes, at every check.
_STATIC: Final = "static"


class WholeFiles(TupleStoreBackend):  # type: ignore[misc]  # the package has no types
    """Files by keys of several parts. One that a killed process had half written would keep every later page from being
    made.

    Args:
        base_directory: the folder's path, or its URL.
        how: as Great Expectations has it: which keys have which files.
    """

    def __init__(self, base_directory: str, **how: Any) -> None:
        super().__init__(**how)
        self._base = location(base_directory)
        self._config = {
            "class_name": type(self).__name__,
            "module_name": type(self).__module__,
            "base_directory": base_directory,
            **how,
        }

    def _path(self, key: Any) -> Location:
        parts = key if isinstance(key, tuple) else key.to_tuple()
        return self._base / str(self._convert_key_to_filepath(parts))

    def _has_key(self, key: Any) -> bool:
        return exists(self._path(key))

    def _get(self, key: Any) -> str:
        try:
            return read_bytes(self._path(key)).decode()
        except FileNotFoundError:
            raise InvalidKeyError(f"{self._path(key)} is not there") from None

    def _get_all(self) -> list[Any]:
        return [self._get(key) for key in self.list_keys()]

    def _set(self, key: Any, value: str | bytes, **_: Any) -> str:
        path = self._path(key)
        if isinstance(value, bytes) and self._static.get(path) == len(value):
            return str(path)
        with storing(path):
            write_atomically(path, value.encode() if isinstance(value, str) else value, durable=False)
        return str(path)

    @cached_property
    def _static(self) -> dict[Location, int]:
        """Those that are there, with their sizes: megabytes, which are not written again by each check."""
        return {file.path: file.size for file in files_below(self._base / _STATIC)}

    def _move(self, source_key: Any, dest_key: Any, **_: Any) -> None:
        raise NotImplementedError

    def list_keys(self, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """The keys that there are, one listing for all."""
        top = (*([self.filepath_prefix] if self.filepath_prefix else []), *prefix)
        depth = len(self._base.parts)
        names = ("/".join(file.path.parts[depth:]) for file in files_below(self._base.joinpath(*top)))
        return [
            self._convert_filepath_to_key(name)
            for name in names
            if not self._is_missing_prefix_or_suffix(self.filepath_prefix, self.filepath_suffix, name)
        ]

    def remove_key(self, key: Any) -> bool:
        """Leave the file. Great Expectations asks for it where a page has no result; the result may have come from
        another host since it listed them. Who removes results removes their pages.
        """
        return False

    def get_url_for_key(self, key: Any, protocol: str | None = None) -> str:
        """Where the file is, for messages."""
        return str(self._path(key))
