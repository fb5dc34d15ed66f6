"""Where Great Expectations keeps its files: a folder, as usual, but every file is there whole or not at all."""

from pathlib import Path
from typing import Any

from great_expectations.data_context.store.tuple_store_backend import TupleFilesystemStoreBackend

from dare_core.storage.atomic import write_atomically
from dare_core.storage.run_files import storing


class WholeFiles(TupleFilesystemStoreBackend):  # type: ignore[misc]  # the package has no types
    """A folder of files. One that a killed process had half written would keep every later page from being made."""

    def _set(self, key: Any, value: str | bytes, **_: Any) -> str:
        parts = key if isinstance(key, tuple) else key.to_tuple()
        path = Path(self.full_base_directory) / self._convert_key_to_filepath(parts)
        with storing(path):
            write_atomically(path, value.encode() if isinstance(value, str) else value, durable=False)
        return str(path)
