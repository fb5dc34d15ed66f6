"""``dare demo``, ``dare ui`` and ``dare airflow …``: the command line finds them by entry point ``dare.commands``."""

import json
from typing import Annotated

import typer

from dare_core.cli.options import settings_of

app = typer.Typer()
airflow = typer.Typer(help="The Airflow that runs the platform's DAGs.", no_args_is_help=True)
app.add_typer(airflow, name="airflow")


@app.command()
def demo() -> None:
    """Run the main job on MovieLens-100K in a local Airflow, twice, and show what came of it."""
    from dare_airflow.demo import run_demo

    run_demo(settings_of())


@app.command()
def ui() -> None:
    """Start a local Airflow with the platform's DAGs, print the login, and run until Ctrl-C."""
    from dare_airflow.local.airflow import serve_ui
    from dare_core.sources.bundled import prepare
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    settings = settings_of()
    if settings.warehouse_url is None:  # a warehouse of the user's own gets no films
        with serving(settings) as url:
            prepare(settings, connect(url))
    serve_ui(settings)


@airflow.command("setup")
def airflow_setup(
    url: Annotated[str, typer.Option(help="of Airflow's API server")] = "http://127.0.0.1:8080",
    user: Annotated[str, typer.Option(help="who may change pools and connections")] = "admin",
    password: Annotated[str, typer.Option(envvar="DARE_AIRFLOW_PASSWORD", prompt=True, hide_input=True)] = "",
) -> None:
    """Create the pool and the connection that the DAGs need in an Airflow, or bring them to what the settings say."""
    from dare_airflow.client import AirflowApi
    from dare_airflow.setup import set_up

    api = AirflowApi(url, user, password)
    try:
        print(json.dumps(set_up(api, settings_of())))
    finally:
        api.close()
