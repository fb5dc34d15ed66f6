"""``dare backup`` and ``dare restore``."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dare_core.cli.options import Json, settings_of
from dare_core.cli.terminal import stderr

if TYPE_CHECKING:
    from dare_core.operations.backup import Manifest

app = typer.Typer()


@app.command()
def backup(
    place: Annotated[str, typer.Argument(help="a folder to make, or a URL such as s3://bucket/backups/monday")],
    as_json: Json = False,
) -> None:
    """Keep the warehouse and the files of its pools, as of one moment, in a new place. Runs may go on meanwhile."""
    from dare_core.operations.backup import backup as make

    _say("kept", place, make(settings_of(), place, on_step=lambda step: stderr.print(f"{step} …")), as_json)


@app.command()
def restore(
    place: Annotated[str, typer.Argument(help="a folder or URL that `dare backup` wrote to")],
    as_json: Json = False,
) -> None:
    """Put a backup back into an empty installation, at the current schema."""
    from dare_core.operations.backup import restore as put_back

    _say("restored", place, put_back(settings_of(), place, on_step=lambda step: stderr.print(f"{step} …")), as_json)


def _say(done: str, place: str, manifest: "Manifest", as_json: bool) -> None:
    facts = {
        "folder": place,
        "made_at": f"{manifest.made_at:%Y-%m-%dT%H:%M:%SZ}",
        "schema_version": manifest.contents.schema_version,
        "rows": sum(manifest.rows.values()),
        "tables": len(manifest.rows),
        "files": len(manifest.files),
        "bytes": sum(kept.size for kept in manifest.files.values()),
    }
    print(
        json.dumps(facts)
        if as_json
        else f"{done} {{rows}} rows of {{tables}} tables, {{files}} files of {{bytes}} bytes, as of {{made_at}}".format(
            **facts
        )
    )
