"""The prompts of the four frameworks as they were written in code, before they were templates: version 1 of each.

Texts in installations were asked for with these words. They must never change.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dare_core.config.descriptions import (
    Attributes,
    described,
    history_line,
    is_titled,
    one_line,
    present,
    tidy,
    value_of,
)
from dare_core.config.domains import Domain, Framework
from dare_core.errors import InputError
from dare_core.knowledge.answers import answer_form
from dare_core.schemas import Kind


@dataclass(frozen=True)
class Question:
    """One request in words.

    Attributes:
        message: of the user's turn; all that comes from source tables stands in it.
        system: of the system's turn, fixed by framework and domain; empty: none of ours.
        opening: how the answer begins. The model continues it.
    """

    message: str
    system: str = ""
    opening: str = ""

    @property
    def text(self) -> str:
        """All of it, for a reader."""
        return "\n\n".join(part for part in (self.system, self.message, self.opening) if part)


def render(domain: Domain, kind: Kind, attributes: Attributes, dropped_history: int = 0) -> Question:
    """What is asked about one entity.

    Args:
        domain: gives framework, nouns and factors.
        kind: item or user.
        attributes: the entity's, as ``schemas.ENTITY`` holds them.
        dropped_history: how many of the oldest history entries are left out. Those of items without a title are
            always.

    Raises:
        InputError: an item has no title.
    """
    ask_item, ask_user = _FRAMEWORKS[domain.knowledge.framework_name]
    if kind == "item":
        if not is_titled(attributes):
            raise InputError("the item has no title to ask about")
        return ask_item(domain, attributes)
    history = attributes.get("history", [])[dropped_history:]
    return ask_user(domain, attributes, [entry for entry in history if is_titled(entry)])


# ---- KAR


def _kar_item(domain: Domain, attributes: Attributes) -> Question:
    return Question(
        f"Introduce the {domain.knowledge.noun} {_item(domain, attributes)} and describe its attributes, "
        f"including but not limited to {_factors(domain)}."
    )


def _kar_user(domain: Domain, attributes: Attributes, history: Sequence[Attributes]) -> Question:
    words = domain.knowledge
    return Question(
        f"{_user(domain, attributes)} has this {words.noun} {words.history} history, oldest first:\n"
        f"{_history(domain, history)}\n"
        f"Analyse the user's preferences in {words.plural}, considering factors such as {_factors(domain)}. "
        f"Explain them clearly from details of the {words.history} history."
    )


# ---- TRAWL


def _trawl_item(domain: Domain, attributes: Attributes) -> Question:
    noun = domain.knowledge.noun
    return Question(
        f"### Instruction\nGather what helps to recommend the {noun} below. First go through the factors, one line "
        "each, and write what you know of it; pass over a factor you know nothing of. Then comment in a few sentences "
        f"on the {noun} as a whole: what sets it apart, and who would like it.\n"
        f"### Factors\n{_factors(domain)}\n"
        f"### {noun.capitalize()}\n{_item(domain, attributes)}\n"
        "### Factors and comment"
    )


def _trawl_user(domain: Domain, attributes: Attributes, history: Sequence[Attributes]) -> Question:
    words = domain.knowledge
    return Question(
        f"### Instruction\nGather what helps to recommend {words.plural} to the user below. First go through the "
        f"factors, one line each, and write what the {words.history} history shows of the user's taste in it; pass "
        "over a factor it shows nothing of. Then comment in a few sentences on the user's taste as a whole, and on "
        f"which {words.plural} to recommend.\n"
        f"### Factors\n{_factors(domain)}\n"
        f"### User\n{_user(domain, attributes)}, whose {words.history} history, oldest first, is:\n"
        f"{_history(domain, history)}\n"
        "### Factors and comment"
    )


# ---- RLMRec


def _rlmrec_item(domain: Domain, attributes: Attributes) -> Question:
    noun = domain.knowledge.noun
    system = (
        f"You help to find out which kinds of users would enjoy a certain {noun}. You are given what is known of the "
        f"{noun} as a JSON object.\n" + _profile_rules(f"which kinds of users would enjoy the {noun}")
    )
    return Question(_as_json(domain, attributes), system, _opening("rlmrec", "item"))


def _rlmrec_user(domain: Domain, attributes: Attributes, history: Sequence[Attributes]) -> Question:
    words = domain.knowledge
    system = (
        f"You help to find out which kinds of {words.plural} a certain user is likely to enjoy. You are given the "
        f"user's {words.history} history, oldest first, with one JSON object a line: what is known of the "
        f'{words.noun}, and as "{words.value_unit}" what the user made of it.\n'
        + _profile_rules(f"which kinds of {words.plural} the user is likely to enjoy")
    )
    lines = [_as_json(domain, entry, **value_of(domain, entry)) for entry in history]
    message = f"{_user(domain, attributes)}\n" + ("\n".join(lines) or "(no entries)")
    return Question(message, system, _opening("rlmrec", "user"))


def _profile_rules(wanted: str) -> str:
    return (
        "Answer with one JSON object of this form and with nothing else:\n"
        f'{{"summarization": "{wanted}", "reasoning": "briefly, why"}}\n'
        "Each of the two has at most 100 words."
    )


# ---- ONCE


def _once_item(domain: Domain, attributes: Attributes) -> Question:
    noun = domain.knowledge.noun
    return Question(
        _as_lines(domain, attributes),
        f"You summarise {domain.knowledge.plural}. You are given the title and what else is known of a {noun}, one "
        f"line each. Answer with a description of the {noun} in one or two sentences, clear, complete, objective and "
        "neutral, and with nothing else.",
    )


def _once_user(domain: Domain, attributes: Attributes, history: Sequence[Attributes]) -> Question:
    words = domain.knowledge
    system = (
        f"You describe what a user is interested in, from the {words.history} history: a numbered list of "
        f"{words.plural}, oldest first. Answer with one JSON object of this form and with nothing else:\n"
        '{"topics": ["topic", "topic"], "regions": ["region", "region"]}\n'
        f"Topics are subjects and kinds of {words.plural}, regions are countries or parts of the world that they come "
        "from or are about; at most five of each, the most important first. Leave the list of regions empty if they "
        "are hard to tell."
    )
    lines = [f"({number}) {_item(domain, entry)}" for number, entry in enumerate(history, 1)]
    message = f"{_user(domain, attributes)}\n" + ("\n".join(lines) or "(no entries)")
    return Question(message, system, _opening("once", "user"))


_FRAMEWORKS: Final = {
    "kar": (_kar_item, _kar_user),
    "trawl": (_trawl_item, _trawl_user),
    "rlmrec": (_rlmrec_item, _rlmrec_user),
    "once": (_once_item, _once_user),
}


def _opening(framework: Framework, kind: Kind) -> str:
    form = answer_form(framework, kind)
    return form.opening if form else ""


# ---- An entity in words


def _user(domain: Domain, attributes: Attributes) -> str:
    known = described(attributes, domain.source.users.attributes)
    return "A user" + (f" ({known})" if known else "")


def _item(domain: Domain, attributes: Attributes) -> str:
    known = described(attributes, domain.source.items.attributes)
    return f'"{one_line(attributes["title"])}"' + (f" ({known})" if known else "")


def _history(domain: Domain, history: Sequence[Attributes]) -> str:
    return "\n".join(history_line(domain, entry) for entry in history) or "(no entries)"


def _as_json(domain: Domain, attributes: Attributes, **more: object) -> str:
    """One line: what is known of an item."""
    known = {**dict(present(attributes, ("title", *domain.source.items.attributes))), **more}
    return json.dumps({name: tidy(value) for name, value in known.items()}, ensure_ascii=False)


def _as_lines(domain: Domain, attributes: Attributes) -> str:
    known = present(attributes, ("title", *domain.source.items.attributes))
    return "\n".join(f"{name.replace('_', ' ')}: {one_line(value)}" for name, value in known)


def _factors(domain: Domain) -> str:
    return ", ".join(domain.knowledge.factors)
