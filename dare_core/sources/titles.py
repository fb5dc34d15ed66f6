"""Titles as people read them: without the markup and the scripts that web pages leave in tables."""

import html
import re
from typing import Final

#: A character reference. Without its semicolon it is text: "AT&T", "R&D".
_REFERENCE: Final = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
#: What browsers do not show: scripts and styles with their content, comments.
_HIDDEN: Final = re.compile(r"<(script|style)\b[^<>]*>.*?(</\1\s*>|$)|<!--.*?(-->|$)", re.IGNORECASE | re.DOTALL)
#: Tags of HTML that lay text out. Others may be what a title is about: "<3", "Heat <|im_end|>".
_TAG: Final = re.compile(
    r"</?(a|abbr|b|big|blockquote|body|br|center|div|em|font|h[1-6]|hr|html|i|img|li|ol|p|s|small|span|strike|strong|sub|"
    r"sup|table|tbody|td|th|tr|tt|u|ul)(\s[^<>]*)?/?>",
    re.IGNORECASE,
)
#: Tags that end a word.
_BREAKING: Final = re.compile(r"</?(blockquote|br|div|h[1-6]|hr|li|ol|p|table|td|th|tr|ul)\b", re.IGNORECASE)
#: What pages' code looks like, and titles do not.
_CODE: Final = re.compile(
    r"^\s*(var|let|const)\s+[\w$]+\s*=.*;|\(new Date\(\)\)\.getTime\(\)|\bfunction\s*\w*\([^()]*\)\s*\{"
    r"|\b(document|window)\.\w+[.(=].*;|[.#@][\w-]+[^{}]{0,80}\{\s*[\w-]+\s*:[^{}]*\}",
    re.DOTALL,
)
#: Characters in which code is looked for: what tries all of a title of a megabyte takes hours.
_LOOKED_AT: Final = 2_000


def plain_title(title: str) -> str | None:
    """A title without markup, its character references resolved; one that holds neither stays as it is.

    Returns:
        None: nothing is left that somebody would read, or it is a page's script or style.
    """
    if "<" not in title and "&" not in title and "{" not in title and "(" not in title:
        return title
    text = _REFERENCE.sub(lambda found: html.unescape(found[0]), title)
    shown = _TAG.sub(lambda tag: " " if _BREAKING.match(tag[0]) else "", _HIDDEN.sub(" ", text))
    if _CODE.search(shown[:_LOOKED_AT]) or (shown != text and not shown.strip()):
        return None
    return title if shown == title else " ".join(shown.split())
