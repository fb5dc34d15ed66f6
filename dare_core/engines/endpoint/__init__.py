"""A server that speaks the OpenAI API as an engine: chat messages go out, texts come back (docs/endpoint.md).

The server applies its own chat template and decodes as it likes, so there are no drafts, no pools and no relaxed
verification. ``client`` asks for one text, with retries; ``pace`` keeps to rate limits; ``engine`` keeps many requests
under way behind the interface of all engines.
"""

from collections.abc import Iterable

from dare_core.config.settings import Settings
from dare_core.errors import SettingError
from dare_core.schemas import Kind


def require_consent(settings: Settings, kinds: Iterable[Kind]) -> None:
    """Send nobody's history to a server that the installation did not say may see it.

    Raises:
        SettingError: engine ``endpoint`` is to write about users, and ``endpoint_may_see_users`` is not set.
    """
    if settings.engine == "endpoint" and "user" in kinds and not settings.endpoint_may_see_users:
        raise SettingError(
            f"prompts about users hold their histories, and would go to {settings.endpoint_url}: set "
            "DARE_ENDPOINT_MAY_SEE_USERS=true if they may, or ask about items alone (kinds item; docs/endpoint.md)"
        )
