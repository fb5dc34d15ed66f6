"""``dare warehouse …``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dare_core.cli.options import (
    Json,
    settings_of,
)
from dare_core.cli.terminal import console, harmless, result_table
from dare_core.errors import InputError

app = typer.Typer(help="The PostgreSQL that holds knowledge and features.", no_args_is_help=True)


@app.command("create-roles")
def warehouse_create_roles(
    secrets: Annotated[Path, typer.Option(envvar="DARE_SECRETS_DIR", help="folder of scripts/make_secrets.py")] = Path(
        "secrets"
    ),
) -> None:
    """Create the roles and databases of Airflow and of the warehouse on a fresh server, as the secrets name them."""
    from dare_core.warehouse.roles import create_roles

    print(json.dumps({"roles": create_roles(secrets)}))


@app.command("start")
def warehouse_start() -> None:
    """Start the embedded PostgreSQL and leave it running; prints its URL."""
    from dare_core.warehouse.server import start

    print(start(settings_of()))


@app.command("stop")
def warehouse_stop() -> None:
    """Stop the embedded PostgreSQL."""
    from dare_core.warehouse.server import stop

    print("stopped" if stop(settings_of()) else "was not running")


@app.command("upgrade")
def warehouse_upgrade() -> None:
    """Bring an empty or older database to the current schema, and tell it where the domains' interactions are."""
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.interactions import register_all
    from dare_core.warehouse.migrate import upgrade
    from dare_core.warehouse.server import serving

    settings = settings_of()
    with serving(settings) as url:
        engine = connect(url)
        upgrade(engine)
        for error in register_all(engine, settings):
            print(f"dare: warning: {harmless(str(error))}", file=sys.stderr)
    print("the warehouse is at the current schema")


EncoderName = Annotated[str, typer.Argument(help="a sentence-transformers model: hub id, folder, or the bundled one")]


@app.command("add-encoder")
def warehouse_add_encoder(name: EncoderName) -> None:
    """Keep vectors of another encoder, of any width, beside those in force: embeds every text; new ones by each run."""
    from dare_core.knowledge import vectors

    print(json.dumps(vectors.add_encoder(settings_of(), name)))


@app.command("switch-encoder")
def warehouse_switch_encoder(name: EncoderName) -> None:
    """Serve another encoder's vectors from now on; set DARE_ENCODER to it as well."""
    from dare_core.warehouse import encoders
    from dare_core.warehouse.session import open_warehouse

    with open_warehouse(settings_of()) as (_, engine):
        encoders.switch(engine, name)
    print(f"{name} is in force")


@app.command("drop-encoder")
def warehouse_drop_encoder(name: EncoderName) -> None:
    """Remove the vectors of an encoder that is not in force."""
    from dare_core.warehouse import encoders
    from dare_core.warehouse.session import open_warehouse

    with open_warehouse(settings_of()) as (_, engine):
        encoders.drop(engine, name)
    print(f"the vectors of {name} are removed")


@app.command("reembed")
def warehouse_reembed(
    domain: Annotated[str, typer.Option(help="whose valid texts; its file says what is embedded")],
) -> None:
    """Embed a domain's valid texts anew where their vectors are in another form than its file says."""
    from dare_core.knowledge import vectors

    print(json.dumps(vectors.reembed(settings_of(), domain)))


@app.command("query")
def warehouse_query(
    name: Annotated[str | None, typer.Argument(help="a query of sql/queries; none lists them")] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value, repeatable")] = None,
    as_json: Json = False,
) -> None:
    """Run one of the example queries; without a name, say what each is for and its parameters."""
    from dare_core.warehouse import queries
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    if name is None:
        asked = queries.questions()
        if as_json:
            print(json.dumps([vars(question) for question in asked], ensure_ascii=False))
            return
        for question in asked:
            print(f"{question.name}: {question.purpose}")
            for parameter, meaning in question.parameters.items():
                print(f"    --param {parameter}=…  {meaning}")
        return
    params: dict[str, str] = {}
    for pair in param or []:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--param {pair!r} is not name=value")
        params[key] = value
    with serving(settings_of()) as url:
        result = queries.run(connect(url), name, params)
    if as_json:
        print(json.dumps([dict(zip(result.columns, row, strict=True)) for row in result.rows], default=str))
    else:
        console.print(result_table(name, result.columns, result.rows))
