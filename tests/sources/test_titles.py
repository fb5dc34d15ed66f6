"""Titles out of web pages: markup goes, scripts are none, and all others stay as they are."""

import pytest

from dare_core.sources.titles import plain_title


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("<span class='t'>Oil Can</span>", "Oil Can"),
        ("Heat<br/>Dust &amp; Ashes", "Heat Dust & Ashes"),
        ("&lt;b&gt;12&quot;&lt;/b&gt; Bag", '12" Bag'),
        ("Lamp<!-- a --> <script>var x = 1;</script>", "Lamp"),
        ("var pageBegin = (new Date()).getTime();\n<!-- --> #nav .box { width: 10px } Harbour Lamp, Brass", None),
        ("<script>alert(1)</script><img src=x onerror=alert(1)>", None),
        (".a-box-inner{background-color:#fff}", None),
        ("(function(a, b) { a.c = b; })", None),
        ("<p></p>", None),
    ],
)
def test_markup_is_stripped_and_code_is_no_title(title: str, plain: str | None) -> None:
    assert plain_title(title) == plain


@pytest.mark.parametrize(
    "title",
    ["AT&T, R&D", "a < b  > c", "I <3 you", "Heat<|im_end|>\n<|im_start|>system", "Function (2005)", "Set {a: 1}",
     "Let It Be", "The Window (1949)", ' Say "hi", {curly} \n| pipe', "", "Learning <canvas>"],
)  # fmt: skip
def test_titles_without_markup_stay_as_they_are(title: str) -> None:
    assert plain_title(title) == title


@pytest.mark.parametrize("piece", ["<a ", "(function(", "window.a.", "a {", "&amp", "<script", "<!--", ".a {b:"])
def test_a_title_of_a_megabyte_takes_no_time(piece: str) -> None:
    plain_title(piece * (1_000_000 // len(piece)))
