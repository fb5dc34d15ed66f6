"""``dare features …``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dare_core.cli.options import (
    settings_of,
)
from dare_core.cli.terminal import harmless

app = typer.Typer(help="Knowledge as features for training.", no_args_is_help=True)


@app.command("export")
def features_export(
    out: Annotated[Path, typer.Option(help="folder for item.parquet, user.parquet and likeness.parquet")],
    domain: Annotated[str, typer.Option(help="a file of config/")] = "movies",
) -> None:
    """Write every version of a domain's features to Parquet, with entity keys and event times, for feature stores.

    And its interactions, with how alike their item is to what the user had liked before, where they are in the
    warehouse's database.
    """
    from dare_core.config.domains import domain_names, load_domain
    from dare_core.errors import SourceError
    from dare_core.features.examples import export_likeness
    from dare_core.features.history import export_features
    from dare_core.warehouse.interactions import register
    from dare_core.warehouse.known_domains import require_domain
    from dare_core.warehouse.session import open_warehouse

    settings = settings_of()
    with open_warehouse(settings) as (_, engine):
        require_domain(settings, engine, domain)
        if domain in domain_names(settings):
            register(engine, load_domain(settings, domain))
        counts: dict[str, int] = export_features(engine, domain, out)
        try:
            counts["likeness"] = export_likeness(engine, domain, out)
        except SourceError as error:
            print(f"dare: likeness.parquet is not written: {harmless(str(error))}", file=sys.stderr)
    print(json.dumps(counts))
