"""What the language model is asked: a template's words about an entity.

The templates that come with the platform lie in ``shipped/``, by framework and version. *KAR* (arXiv 2306.10933,
section 3.2) asks for factual knowledge of an item and for reasoning about a user's preferences along scenario-specific
factors. *TRAWL* (arXiv 2403.06642) gives an instruction: go through the factors that matter for recommending, then
comment. *RLMRec* (arXiv 2310.15950, section 3.2) sets a role, hands the facts over as JSON and asks for a profile as
JSON. *ONCE* (arXiv 2305.06566, section 3) has items condensed by a content summariser, and users described by topics
and regions. docs/frameworks.md says where these prompts differ from the papers'.
"""

from dataclasses import dataclass

from dare_core.config.descriptions import Attributes, is_titled
from dare_core.config.domains import Domain
from dare_core.errors import InputError
from dare_core.knowledge.answers import answer_form
from dare_core.knowledge.prompts.fields import Wording
from dare_core.knowledge.prompts.templates import template_of
from dare_core.schemas import Kind


@dataclass(frozen=True)
class Question:
    """One request in words.

    Attributes:
        message: of the user's turn.
        system: of the system's turn; empty: none of ours.
        opening: how the answer begins. The model continues it.
    """

    message: Wording
    system: Wording = Wording()  # noqa: RUF009  # never changed
    opening: str = ""

    @property
    def text(self) -> str:
        """All of it, for a reader."""
        return "\n\n".join(part for part in (self.system, self.message, self.opening) if part)


def render(domain: Domain, kind: Kind, attributes: Attributes, dropped_history: int = 0) -> Question:
    """What is asked about one entity.

    Args:
        domain: gives the template, nouns and factors.
        kind: item or user.
        attributes: the entity's, as ``schemas.ENTITY`` holds them.
        dropped_history: how many of the oldest history entries are left out. Those of items without a title are
            always.

    Raises:
        InputError: an item has no title.
        SettingError: see :func:`~dare_core.knowledge.prompts.templates.template_of`.
    """
    if kind == "item" and not is_titled(attributes):
        raise InputError("the item has no title to ask about")
    history = [entry for entry in attributes.get("history", [])[dropped_history:] if is_titled(entry)]
    parts = template_of(domain, kind).render(domain, kind, attributes, history)
    form = answer_form(domain.knowledge.framework_name, kind)
    return Question(parts["user"], parts["system"], form.opening if form else "")
