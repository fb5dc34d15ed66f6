from pathlib import Path

from dare_core.evaluation.comparison import Compared
from dare_core.reports.comparison import headline, render, write_comparison

FIGURES = {
    "texts": 12, "words": 40.0, "tokens": 64.0, "relaxed_token_rate": 0.03, "distinct_1": 0.3, "distinct_2": 0.6,
    "distinct_3": 0.8, "self_bleu": 0.4, "same_text": 0.25, "alike": 0.93, "unlike": 0.41,
}  # fmt: skip
ARMS = {"strict": {**FIGURES, "alike": 1.0}, "relaxed": FIGURES}
COMPARED = [
    Compared("item", str(n), "1995", f"about <b>{n}</b>", {"strict": f"s{n} & all", "relaxed": f"r{n} <script>"},
             {"strict": 1.0, "relaxed": n / 12})
    for n in range(12)
]  # fmt: skip


def test_the_page_s_first_line_says_how_far_relaxed_texts_are_from_strict_ones() -> None:
    assert headline({"item/1995": ARMS, "item/all": ARMS}) == (
        "Of 12 relaxed item texts 25% are the strict ones word for word; their likeness to them is 0.93, that of texts "
        "of different prompts 0.41."
    )


def test_texts_stand_side_by_side_from_the_most_to_the_least_different() -> None:
    page = render("movies", {"item/all": ARMS}, COMPARED)
    shown = [number for number in range(12) if f"s{number} &amp; all" in page]
    assert shown == [0, 2, 4, 6, 8, 10]
    assert page.index("s0 &amp;") < page.index("s10 &amp;")


def test_what_texts_and_prompts_say_is_shown_and_never_run(tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", "movies", {"item/all": ARMS}, COMPARED)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "r0 &lt;script&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_the_page_asks_for_no_other_file() -> None:
    page = render("movies", {"item/all": ARMS}, COMPARED)
    assert "http" not in page
    assert "src=" not in page
    assert "<link" not in page
