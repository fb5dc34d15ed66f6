"""``dare source …``."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dare_core.cli.options import (
    SampleDomain,
    settings_of,
)

app = typer.Typer(help="The tables that knowledge is written about.", no_args_is_help=True)


@app.command("import")
def source_import(
    domain: Annotated[SampleDomain, typer.Option(help="movies: MovieLens-100K; shop: made up")] = SampleDomain.movies,
    release: Annotated[
        Path | None,
        typer.Option("--from", help="instead: folder of a MovieLens release (.dat, .csv) or of Amazon reviews"),
    ] = None,
    products: Annotated[int, typer.Option(min=1, help="shop: how many")] = 600,
    customers: Annotated[int, typer.Option(min=1, help="shop: how many")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="shop: what it is made from")] = 0,
) -> None:
    """Write a sample domain's tables, or a data set's, into the source schema of the warehouse database."""
    from dare_core.sources.importer import import_tables
    from dare_core.sources.movielens import read_movielens
    from dare_core.sources.releases import Release, open_release
    from dare_core.sources.shop import make_shop
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    if release is not None:
        chosen = open_release(release)
    elif domain is SampleDomain.movies:
        chosen = Release(read_movielens(), [])
    else:
        chosen = Release(make_shop(products, customers, seed, until=datetime.now(UTC)), [])
    with serving(settings_of()) as url:
        counts: dict[str, Any] = import_tables(connect(url), chosen.tables)
    if chosen.files:
        counts["bad_lines"] = {file.path.name: file.bad for file in chosen.files}
        counts["left_out"] = {file.path.name: dict(file.left_out) for file in chosen.files if file.left_out}
    print(json.dumps(counts))


@app.command("advance")
def source_advance(
    days: Annotated[int, typer.Option(min=1, help="how many days pass")] = 1,
) -> None:
    """Let days pass in the imported shop: purchases, new, changed and deleted products and customers, dated now."""
    from dare_core.sources.shop import advance
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    with serving(settings_of()) as url:
        print(json.dumps(advance(connect(url), days)))
