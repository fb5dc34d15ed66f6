"""The variables that Airflow's components on this machine see: their configuration, and the platform's settings."""

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dare_core.config.settings import Settings

#: Who may log in.
USER: Final = "admin"
HOST: Final = "127.0.0.1"


def password_file(home: Path) -> Path:
    """Where Airflow of this ``AIRFLOW_HOME`` reads the passwords of its users."""
    return home / "passwords.json"


def variables(
    settings: Settings,
    warehouse_url: str,
    *,
    home: Path,
    database: str,
    port: int,
    dags_dir: Path,
    scheduled: bool,
    overrides: Mapping[str, str],
) -> dict[str, str]:
    """All variables of a component; nothing of an Airflow that this process was told of is left.

    Args:
        settings: what tasks see, through ``DARE_…`` variables.
        warehouse_url: libpq URL of the warehouse.
        home: ``AIRFLOW_HOME``.
        database: libpq URL of Airflow's metadata.
        port: of the API server.
        dags_dir: the folder of DAG files.
        scheduled: whether the DAGs follow their schedules.
        overrides: variables that win over the ones made here.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    loopback = ",".join(filter(None, (inherited.get("NO_PROXY") or inherited.get("no_proxy"), HOST)))
    metadata = re.sub(r"^[^:]+", "postgresql+psycopg", database)
    ours = settings.model_dump(mode="json", exclude={"warehouse_url", "data_dir"}, exclude_none=True)
    made: dict[str, str] = {
        **inherited,
        **{f"DARE_{name.upper()}": str(value) for name, value in ours.items()},
        "DARE_DATA_DIR": str(settings.data_dir.resolve()),
        "DARE_WAREHOUSE_URL": warehouse_url,  # tasks never start a server
        **({} if scheduled else {"DARE_REFRESH_SCHEDULE": "none", "DARE_MAINTAIN_SCHEDULE": "none"}),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "NO_PROXY": loopback,
        "no_proxy": loopback,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),  # shared by the components, new at every start
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_dir),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(password_file(home)),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": metadata,
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    }
    for name in overrides:  # Airflow would read the value, and never run the command that another one is from
        made.pop(name.removesuffix("_CMD"), None)
    return {**made, **overrides}
