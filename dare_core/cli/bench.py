"""``dare bench …`` in a checkout; elsewhere, a word on where benchmarks are."""

from importlib import import_module

import typer

from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import InputError


def add_to(app: typer.Typer) -> None:
    """Add the commands of the checkout's ``bench`` package, or what stands for them where there is no checkout."""
    if (PROJECT_DIR / "bench" / "cli.py").exists():
        app.add_typer(import_module("bench.cli").app, name="bench")
    else:
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command("bench", context_settings=anything)(_refuse)


def _refuse() -> None:
    """Benchmarks; they come with the source code."""
    raise InputError("benchmarks are not part of the installed package; run `dare bench` in a checkout of the source")
