"""Measures of one text: pure functions, str in, number out."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from dare_core.config.wording import FREQUENT_WORDS, INJECTIONS

#: Words that :func:`repeated_ngram_share` looks at. A small model that decodes greedily falls into a loop sooner or
#: later and never leaves it, so over a whole text the share says how long the text was allowed to grow. Of 1757 texts
#: of SmolLM2-135M-Instruct (192 tokens, about 143 words) the median was 0.53, and 0.09 when each was cut to about 96
#: tokens; over the first 64 words it was 0.07 and 0.05.
OPENING_WORDS: Final = 64

_WORD: Final = re.compile(r"\w+")

#: Letters, marks, numbers, punctuation, symbols and separators print; so do format characters (Cf), which join emoji
#: and order right-to-left text. Controls, surrogates, private-use and unassigned code points do not.
_UNPRINTABLE_CATEGORIES: Final = frozenset({"Cc", "Cs", "Co", "Cn"})
_PRINTABLE_CONTROLS: Final = frozenset("\n\t")
#: Stands where a byte-level tokenizer's tokens were no valid UTF-8.
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def characters(text: str) -> int:
    """Unicode code points."""
    return len(text)


def words(text: str) -> int:
    """Runs of characters between white space; 0 for a blank text."""
    return len(text.split())


def repeated_ngram_share(text: str, n: int = 4, opening: int = OPENING_WORDS) -> float:
    """How much of a text's opening says again what it said before.

    The share of word n-grams that occurred earlier: occurrences beyond the first / all n-grams, over the first
    ``opening`` words, case folded, punctuation kept at its word.

    Returns:
        0 (no n-gram twice, or fewer than ``n`` words) up to, but never, 1. A script that writes without spaces has few
        words and measures 0.
    """
    opening_words = list(islice(text.casefold().split(), opening))
    said = list(ngrams(opening_words, n))
    return 1 - len(set(said)) / len(said) if said else 0.0


def printable_share(text: str) -> float:
    """The share of characters that a reader can see or that lay out what they see: 0 to 1; 1 for an empty text.

    Newline and tab print, other controls do not; nor does the replacement character, the trace of broken UTF-8.
    """
    if not text:
        return 1.0
    printable = sum(count for character, count in Counter(text).items() if _prints(character))
    return printable / len(text)


def language_share(text: str, language: str) -> float:
    """How much of a text is made of a language's most frequent words: 0 to 1; 0 for a text without words.

    Of English prose about 0.4. A text in another language shares a few of them by chance; one that is a list of names,
    a table or a loop of symbols has none, and is no prose either.
    """
    found = bare_words(text)
    frequent = FREQUENT_WORDS[language]
    return sum(word in frequent for word in found) / len(found) if found else 0.0


def echo_share(text: str, prompt: str, n: int = 5, opening: int = OPENING_WORDS) -> float:
    """How much of a text's opening is the prompt said again.

    The share of word n-grams of the first ``opening`` words that the prompt holds too, case and punctuation aside.

    Returns:
        0 (none, or fewer than ``n`` words) to 1.
    """
    said, asked = bare_words(text)[:opening], bare_words(prompt)
    known = set(ngrams(asked, n))
    echoed = [ngram in known for ngram in ngrams(said, n)]
    return sum(echoed) / len(echoed) if echoed else 0.0


def refusal(text: str, phrases: Iterable[str], beginning: int = 200) -> str:
    """The first of the phrases that a text's first ``beginning`` characters hold; empty where they hold none."""
    start = text[:beginning].casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return next((phrase for phrase in phrases if phrase.casefold() in start), "")


def own_words(text: str, attributes: str, language: str) -> int:
    """How many different words of an entity's attributes its text says; see :func:`attribute_words`.

    Returns:
        At least 1 where the attributes have no words, since then nothing could be said of them.
    """
    own = attribute_words(attributes, language)
    return len(own.intersection(bare_words(text))) if own else 1


def attribute_words(attributes: str, language: str) -> set[str]:
    """The words of an entity's attributes, a JSON object: its values, and the titles and attributes in its history.

    Ratings and times of a history are left out, and so are a language's most frequent words.
    """
    return set(bare_words(" ".join(_values(json.loads(attributes))))) - FREQUENT_WORDS.get(language, frozenset())


def injection(title: str) -> str:
    """Which marker of :data:`~dare_core.config.wording.INJECTIONS` a title holds; empty where it holds none."""
    return next((name for name, pattern in INJECTIONS.items() if pattern.search(title)), "")


def _values(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for name, inner in value.items():
                if name not in ("value", "time"):
                    yield from _values(inner)
        case list():
            for inner in value:
                yield from _values(inner)
        case str() | int() | float():
            yield str(value)


def bare_words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return _WORD.findall(text.casefold())


def ngrams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every ``n`` neighbours."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)


def _prints(character: str) -> bool:
    if character in _PRINTABLE_CONTROLS:
        return True
    return character != _REPLACEMENT and unicodedata.category(character) not in _UNPRINTABLE_CATEGORIES
