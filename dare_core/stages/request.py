"""What a run is asked to do."""

import re
from datetime import UTC
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from dare_core.config.settings import Share, Verification
from dare_core.schemas import KINDS, Kind
from dare_core.warehouse.renderings import Order

#: What of a request is taken from the settings where it is left out.
DECODING: Final = ("verification", "top_k", "min_prob", "max_new_tokens")
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class RunRequest(BaseModel):
    """What a run is asked to do. Decoding values left out are taken from the settings when the run is planned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    domain: str = "movies"
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    item_limit: int | None = Field(None, ge=1, description="items to write at most")
    user_limit: int | None = Field(None, ge=1, description="users to write at most")
    verification: Verification | None = None
    top_k: int | None = Field(None, ge=1)
    min_prob: Share | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    as_of: AwareDatetime | None = Field(None, description="nothing that happened later is seen; default: now")
    allow_deletions: bool = Field(False, description="however much is gone from the source, it is meant")
    order: Order = Field("spread", description="who comes first under a limit; active: by events")

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, run_id: str) -> str:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError("a run id has letters, digits, '.', '_' and '-', and begins with a letter or digit")
        return run_id

    def limit(self, kind: Kind) -> int | None:
        """Texts of one kind to write at most."""
        return self.item_limit if kind == "item" else self.user_limit

    def asked(self) -> dict[str, Any]:
        """All but the run's id and domain, as JSON values."""
        return self.model_dump(mode="json", exclude={"run_id", "domain"})

    def command(self) -> str:
        """The command that goes on with the run."""
        parts = [f"dare pipeline run --domain {self.domain} --run-id {self.run_id}"]
        if set(self.kinds) != set(KINDS):
            parts += [f"--kind {kind}" for kind in self.kinds]
        if self.as_of is not None:
            parts.append(f"--as-of {self.as_of.astimezone(UTC):%Y-%m-%dT%H:%M:%S}")
        parts += ["--order active"] if self.order == "active" else []
        parts += ["--allow-deletions"] if self.allow_deletions else []
        asked = {name: getattr(self, name) for name in ("item_limit", "user_limit", *DECODING)}
        parts += [f"--{name.replace('_', '-')} {value}" for name, value in asked.items() if value is not None]
        return " ".join(parts)
