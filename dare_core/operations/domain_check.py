"""Whether a domain can be run: its file, its tables and one prompt of each kind, found out in seconds."""

from dataclasses import dataclass
from typing import Any

from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.knowledge.preview import Preview, preview
from dare_core.knowledge.prompts.templates import template_of
from dare_core.schemas import KINDS
from dare_core.sources.tables_there import require_columns_of_files, require_tables, what_is_checked
from dare_core.warehouse.session import open_warehouse


@dataclass(frozen=True)
class Checked:
    """What was found; nothing of it is wrong.

    Attributes:
        found: by what was checked, in words.
        previews: a prompt of each kind.
    """

    found: dict[str, str]
    previews: tuple[Preview, ...]

    def figures(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {"found": self.found, "prompts": [each.figures() for each in self.previews]}


def check_domain(settings: Settings, name: str) -> Checked:
    """Check a domain's file, then its templates, tables and columns, then the prompts by the model's tokenizer.

    Prompts are about an entity of the warehouse, or a made-up one before the first pull.

    Raises:
        DareError: the first thing that is wrong.
    """
    domain = load_domain(settings, name)
    templates = {kind: template_of(domain, kind) for kind in KINDS}
    with open_warehouse(settings) as (url, engine):
        require_tables(domain, url)
        require_columns_of_files(domain)
        previews = tuple(preview(settings, engine, domain, kind, 1) for kind in KINDS)
    found = {"file": str(settings.config_dir / f"{name}.toml"), "tables": what_is_checked(domain)}
    for each in previews:
        found[f"{each.kind} prompt"] = (
            f"{templates[each.kind].origin} ({each.version}); {each.facts.shared_tokens} tokens shared at the front"
        )
    return Checked(found, previews)
