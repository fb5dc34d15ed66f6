"""What the charts show, read from the SVG, in which every text stands beside its outlines as a comment."""

from pathlib import Path
from typing import Any

import pytest

from bench.charts import draw_decode, draw_projection

RESULT: dict[str, Any] = {
    "tokens_per_second": {
        "generate_b1": 14.0,
        "prompt_lookup_b1": 15.0,
        "relaxed_b1": 41.5,
        "vllm_b16": 120.0,
        "generate_batch_b16": 90.0,
        "ungrouped_relaxed_b16": 181.0,
        "relaxed_b16": 217.0,
        "bf16_strict_b1": 33.0,
    },
    "runs": {"relaxed_b1": [40.0, 41.5, 43.0], "relaxed_b16": [210.0, 217.0]},
    "time_shares": {
        "relaxed_b1": {"draft": 0.1, "forward": 0.8, "verify": 0.06, "commit": 0.04},
        "bf16_strict_b1": {"draft": 0.1, "forward": 0.9},
    },
}

SPEEDUP: dict[str, Any] = {
    "speedup": {
        "H100": {
            "7B": {
                mode: {"plain": {"1": 1.0, "2": 1.0}, "fixed": {"1": 3.0, "2": 2.0}, "budgeted": {"1": 3.1, "2": 2.9}}
                for mode in ("strict", "relaxed")
            }
        },
        "A10": {"7B": {mode: {"plain": {}, "fixed": {}, "budgeted": {}} for mode in ("strict", "relaxed")}},
    }
}


def texts(svg: Path) -> list[str]:
    """The comments, which repeat what is written."""
    return [part.split(" -->")[0] for part in svg.read_text().split("<!-- ")[1:]]


def decode(folder: Path, **changes: Any) -> list[str]:
    draw_decode(RESULT | changes, folder / "decode.svg")
    return texts(folder / "decode.svg")


def test_bars_are_grouped_by_batch_size_and_bear_their_medians(tmp_path: Path) -> None:
    shown = decode(tmp_path)
    assert {"1 sequence", "16 sequences", "41.5", "217", "vLLM", "DARE relaxed", "transformers generate"} <= set(shown)
    assert {"full precision", "bf16", "33.0"} <= set(shown)


def test_a_contender_stands_in_the_legend_once(tmp_path: Path) -> None:
    assert decode(tmp_path).count("DARE relaxed") == 1


def test_time_shares_are_drawn_for_each_name(tmp_path: Path) -> None:
    assert {"relaxed b1", "bf16 strict b1", "draft", "forward", "verify", "commit"} <= set(decode(tmp_path))


def test_precision_may_stand_behind_the_contender(tmp_path: Path) -> None:
    shown = decode(tmp_path, tokens_per_second={"relaxed_bf16_b1": 50.0}, time_shares={})
    assert {"bf16", "DARE relaxed", "50.0"} <= set(shown)
    assert "full precision" not in shown


def test_fp32_is_full_precision_whether_or_not_a_name_says_so(tmp_path: Path) -> None:
    shown = decode(tmp_path, tokens_per_second={"fp32_relaxed_b1": 50.0, "vllm_b1": 20.0}, time_shares={})
    assert {"full precision", "DARE relaxed", "vLLM"} <= set(shown)
    assert "fp32" not in shown


def test_a_contender_that_is_not_known_is_drawn_under_its_own_name(tmp_path: Path) -> None:
    assert "new thing" in decode(tmp_path, tokens_per_second={"new_thing_b2": 3.0, "relaxed_b1": 2.0})


@pytest.mark.parametrize(
    "result",
    [
        {"tokens_per_second": {}},
        {"tokens_per_second": {"odd": 1.0, "_b2": 2.0}, "time_shares": {"odd": {"x": 1.0}}},
        {"tokens_per_second": {"relaxed_b1": 2.0}, "time_shares": {"relaxed_b1": {"sleep": 1.0}}},
        {"tokens_per_second": {f"x{i}_b1": 2.0 for i in range(9)}, "runs": {"x1_b1": []}},
    ],
)
def test_names_of_another_form_and_missing_parts_do_not_break_it(tmp_path: Path, result: dict[str, Any]) -> None:
    draw_decode(result, tmp_path / "decode.svg")
    assert "</svg>" in (tmp_path / "decode.svg").read_text()


def test_the_projection_says_that_it_is_none_of_a_measurement(tmp_path: Path) -> None:
    draw_projection(SPEEDUP, tmp_path / "projection.svg")
    shown = texts(tmp_path / "projection.svg")
    assert any("projection, not measured" in text for text in shown)
    assert {"H100, 7B", "A10, 7B", "plain", "fixed", "budgeted", "relaxed", "strict"} <= set(shown)


def test_a_model_that_fits_on_no_gpu_of_a_kind_is_said_not_to(tmp_path: Path) -> None:
    draw_projection(SPEEDUP, tmp_path / "projection.svg")
    assert texts(tmp_path / "projection.svg").count("does not fit in memory") == 1


@pytest.mark.parametrize(("draw", "result"), [(draw_decode, RESULT), (draw_projection, SPEEDUP)])
def test_the_same_result_says_the_same_without_a_date(tmp_path: Path, draw: Any, result: dict[str, Any]) -> None:
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        draw(result, file)
    assert texts(files[0]) == texts(files[1])  # positions may differ in the sixth digit
    assert "<dc:date>" not in files[0].read_text()


def test_the_suffix_names_the_format(tmp_path: Path) -> None:
    draw_decode(RESULT, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
