"""Words that rules look for: a language's most frequent ones, refusals, and what would command a model."""

import re
from typing import Final, Literal

#: A language that texts are to be in; ``any``: it is not looked at.
Language = Literal["any", "de", "en", "es", "fr"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words that make up a third or more of running prose in their language, and of which the others have few.
FREQUENT_WORDS: Final[dict[str, frozenset[str]]] = {
    "de": _words(
        "der die das und in zu den von mit ist auf für im dem nicht ein eine als auch es an werden aus er hat dass sie "
        "nach bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man "
        "sein wird seine ihre"
    ),
    "en": _words(
        "the of and to a in is that for it as with was on by this are be from an or his at which not have but had has "
        "he they their its you who can also more one about all"
    ),
    "es": _words(
        "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
        "sobre este ya entre cuando todo esta ser son dos también fue había era muy hasta desde está"
    ),
    "fr": _words(
        "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ou mais "
        "son aux d l n s qu c été cette ses comme tout nous sa leur on être fait elle"
    ),
}

#: How models decline; looked for in a text's beginning, case and the form of apostrophes aside.
REFUSALS: Final = (
    "as an ai",
    "as a language model",
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "i can't assist",
    "i cannot assist",
    "i can't help",
    "i cannot help",
    "i cannot provide",
    "i can't provide",
    "i'm not able to",
    "i am not able to",
    "i don't have access",
    "i do not have access",
    "i don't have any information",
    "i do not have any information",
)

#: By name, what a title of a film or product does not hold unless somebody wants to command the model that reads it.
INJECTIONS: Final[dict[str, re.Pattern[str]]] = {
    "control token": re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>", re.IGNORECASE),
    "role": re.compile(r"(^|\n)\s*#*\s*(system|assistant|user|human)\s*:", re.IGNORECASE),
    "instruction": re.compile(
        r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instructions?|prompts?|rules|everything above)\b"
        r"|\b(system|developer) prompt\b|\byou are now (a|an|in)\b|\bdo not (describe|mention|answer)\b"
        r"|\b(respond|reply|answer) only\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "hidden characters": re.compile("[\u200b\u2060\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"),
}
