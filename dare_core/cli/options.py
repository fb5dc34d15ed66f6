"""Options that several commands share, the settings that they make, and what a command holds open."""

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated, Any

import typer

from dare_core.config.settings import Settings, load_settings

#: What a command opens and :func:`dare_core.cli.main.main` closes.
held = ExitStack()


class VerificationMode(StrEnum):
    """How drafts are verified."""

    strict = "strict"
    relaxed = "relaxed"


class EngineName(StrEnum):
    """What writes texts."""

    transformers = "transformers"
    vllm = "vllm"
    endpoint = "endpoint"


class EntityKind(StrEnum):
    """What knowledge is about."""

    item = "item"
    user = "user"


class SampleDomain(StrEnum):
    """Domains whose tables come with the platform."""

    movies = "movies"
    shop = "shop"


Verification = Annotated[VerificationMode | None, typer.Option(help="strict equals greedy decoding; relaxed is faster")]
TopK = Annotated[int | None, typer.Option(help="relaxed: a drafted token must be among the k most probable")]
MinProb = Annotated[float | None, typer.Option(help="relaxed: and have a probability above this")]
MaxNewTokens = Annotated[int | None, typer.Option(help="length of a text at most")]
Model = Annotated[str | None, typer.Option(help="a transformers causal LM: hub id, folder, or the bundled one's name")]
EngineOption = Annotated[EngineName | None, typer.Option(help="what writes texts; default: the setting DARE_ENGINE")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON line")]


def settings_of(**overrides: object) -> Settings:
    """The settings in force, with the options that were given on the command line."""
    return load_settings(**given(overrides))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
