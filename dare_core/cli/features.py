"""``dare features …``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dare_core.cli.options import (
    settings_of,
)

app = typer.Typer(help="Knowledge as features for training.", no_args_is_help=True)


@app.command("export")
def features_export(
    out: Annotated[Path, typer.Option(help="folder for item.parquet and user.parquet")],
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
) -> None:
    """Write every version of a domain's features to Parquet, with entity keys and event times, for feature stores."""
    from dare_core.features.history import export_features
    from dare_core.warehouse.known_domains import require_domain
    from dare_core.warehouse.session import open_warehouse

    settings = settings_of()
    with open_warehouse(settings) as (_, engine):
        require_domain(settings, engine, domain)
        print(json.dumps(export_features(engine, domain, out)))
