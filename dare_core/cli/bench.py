"""``dare bench …`` in a checkout; elsewhere, a word on where benchmarks are."""

from importlib import import_module

import typer

from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import InputError

_HELP = "Benchmarks against what one would run instead."


def app() -> typer.Typer:
    """The commands of the checkout's ``bench`` package, or what stands for them where there is no checkout."""
    if (PROJECT_DIR / "bench" / "cli.py").exists():
        commands: typer.Typer = import_module("bench.cli").app
        return commands
    missing = typer.Typer(help=f"{_HELP} They come with the source code.", invoke_without_command=True)

    @missing.callback(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def _refuse() -> None:
        raise InputError(
            "benchmarks are not part of the installed package; run `dare bench` in a checkout of the source"
        )

    return missing
