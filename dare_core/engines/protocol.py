"""What engines have in common: a model is loaded once, and engines are opened over it."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dare_core.config.settings import Settings
    from dare_core.decoding import EngineConfig, TextEngine
    from dare_core.models import ModelFacts
    from dare_core.pools import Pool


class Engines(Protocol):
    """A loaded model, and one engine at a time over it.

    Attributes:
        facts: the model's.
    """

    facts: "ModelFacts"

    def open(self, config: "EngineConfig", pool: "Pool | None", drafts: bool = True) -> "TextEngine":
        """An engine; the one opened before is not to be used any more.

        Args:
            config: sizes and verification.
            pool: what to draft from, beside the texts' own words and those of texts finished before.
            drafts: False decodes plainly.
        """
        ...


def learned_tokens(settings: "Settings") -> int:
    """Tokens of finished texts that later ones draft from."""
    return 0 if settings.deterministic else settings.learned_tokens
