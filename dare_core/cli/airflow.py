"""``dare airflow …``."""

import json
from typing import Annotated

import typer

from dare_core.cli.options import (
    settings_of,
)

app = typer.Typer(help="The Airflow that runs the platform's DAGs.", no_args_is_help=True)


@app.command("setup")
def airflow_setup(
    url: Annotated[str, typer.Option(help="of Airflow's API server")] = "http://127.0.0.1:8080",
    user: Annotated[str, typer.Option(help="who may change pools and connections")] = "admin",
    password: Annotated[str, typer.Option(envvar="DARE_AIRFLOW_PASSWORD", prompt=True, hide_input=True)] = "",
) -> None:
    """Create the pool and the connection that the DAGs need in an Airflow, or bring them to what the settings say."""
    from dare_core.airflow_api import AirflowApi
    from dare_core.airflow_setup import set_up

    api = AirflowApi(url, user, password)
    try:
        print(json.dumps(set_up(api, settings_of())))
    finally:
        api.close()
