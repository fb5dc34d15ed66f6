"""Which domains there are: those that are configured, and those whose knowledge the warehouse still has."""

from sqlalchemy import Engine, text

from dare_core.config.domains import domain_names, misnamed_files
from dare_core.config.settings import Settings
from dare_core.errors import SettingError


def require_domain(settings: Settings, engine: Engine, name: str) -> None:
    """Check that a domain is there, so that a misspelt one is no empty answer.

    Raises:
        SettingError: it is not; names those that are.
    """
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT DISTINCT domain FROM knowledge.generation_run")).scalars()
        known = sorted({*domain_names(settings), *stored})
    if name not in known:
        left_out = "".join(f"; {error}" for error in misnamed_files(settings))
        raise SettingError(f"there is no domain {name!r}; there are: {', '.join(known) or 'none'}{left_out}")
