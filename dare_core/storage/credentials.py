"""The environment variables that filesystems of fsspec take their accounts and addresses from."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, Final

#: Of S3, Azure, Google and fsspec's own configuration.
_PREFIXES: Final = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_")
_SECRET: Final = re.compile("secret|token|password|key|sas|connection_string", re.IGNORECASE)
#: A shorter value is no secret, and might be a part of any word.
_LEAST: Final = 8


def variables() -> dict[str, str]:
    """Those that are set for this process, by name."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


def secrets() -> set[str]:
    """What of their values nobody may read in a log."""
    return {value for name, value in variables().items() for value in _secrets(name, value) if len(value) >= _LEAST}


def _secrets(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _secrets(key, inner)
    elif isinstance(value, str):
        if _SECRET.search(name):
            yield value
        elif value.startswith("{"):  # FSSPEC_S3 = '{"key": …, "secret": …}'
            try:
                yield from _secrets(name, json.loads(value))
            except ValueError:
                return
