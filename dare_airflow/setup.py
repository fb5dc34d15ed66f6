"""What a fresh Airflow needs before the DAGs can run: the pool of generation tasks, and where the warehouse is.

Airflow variables are not needed: what an installation decides are its settings.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from dare_airflow.client import AirflowApi
from dare_core.config.settings import GENERATION_POOL, WAREHOUSE_CONNECTION, Settings


def set_up(api: AirflowApi, settings: Settings) -> dict[str, Any]:
    """Bring Airflow to what the settings say; run again, it changes what differs.

    The pool ``gpu`` gets a slot for each accelerator. Where the settings name a warehouse, the connection
    ``dare_warehouse`` does too, for tasks on machines whose own settings do not, and for other teams' DAGs.

    Returns:
        ``pools``: slots by name. ``connections``: their names.

    Raises:
        AirflowError: Airflow cannot be reached, or refuses.
    """
    description = "Generation tasks: one at a time on each accelerator"
    api.set_pool(GENERATION_POOL, settings.accelerators, description)
    connections = []
    if settings.warehouse_url is not None:
        api.set_connection(WAREHOUSE_CONNECTION, connection_fields(settings.warehouse_url.get_secret_value()))
        connections.append(WAREHOUSE_CONNECTION)
    return {"pools": {GENERATION_POOL: settings.accelerators}, "connections": connections}


def connection_fields(url: str) -> dict[str, Any]:
    """A PostgreSQL URL as the fields of an Airflow connection, which keeps the password apart and encrypted."""
    parts = urlsplit(url)
    return {
        "conn_type": "postgres",
        "description": "The warehouse of users' and items' knowledge",
        "host": parts.hostname,
        "port": parts.port,
        "login": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
        "schema": unquote(parts.path.removeprefix("/")) or None,
        "extra": json.dumps(dict(parse_qsl(parts.query))),
    }


def warehouse_url(fields: Mapping[str, Any]) -> str:
    """The PostgreSQL URL that :func:`connection_fields` took apart."""
    login, password, host, port, schema = (
        quote(str(fields[name] or ""), safe="") for name in ("login", "password", "host", "port", "schema")
    )
    user = f"{login}:{password}@" if password else f"{login}@" if login else ""
    options = urlencode(json.loads(fields["extra"] or "{}"))
    return f"postgresql://{user}{host}{port and ':' + port}/{schema}" + (f"?{options}" if options else "")
