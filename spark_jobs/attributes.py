"""What is known of an entity, as the JSON object that the column ``attributes`` holds."""

import json
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyspark.sql import functions as sf
from pyspark.sql.types import StringType

from dare_core.sources.titles import plain_title


def _as_json(structs: pa.Array) -> pa.Array:
    return pa.array([json.dumps(_plain(row), ensure_ascii=False) for row in structs.to_pylist()], pa.string())


#: A column of structs as JSON objects, as ``attributes`` holds them.
json_objects = sf.arrow_udf(_as_json, StringType())


def _plain(value: Any) -> Any:
    """The value as JSON knows it: no nulls inside objects and lists, times in ISO 8601, numbers as numbers."""
    match value:
        case dict():
            plain = {key: _plain(inner) for key, inner in value.items()}
            if isinstance(plain.get("title"), str):
                plain["title"] = plain_title(plain["title"])
            if isinstance(plain.get("value"), str):  # of a CSV file
                plain["value"] = _number(plain["value"])
            return {key: inner for key, inner in plain.items() if inner is not None}
        case list():
            return [inner for inner in map(_plain, value) if inner is not None]
        case datetime() | date():
            return value.isoformat()
        case float() | Decimal():
            if not math.isfinite(value):
                return None
            return int(value) if value == int(value) else float(value)
        case _:
            return value


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return _plain(number) if math.isfinite(number) else text
