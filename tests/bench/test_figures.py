"""The ratios of made speeds."""

import pytest

from bench.figures import ratios
from bench.shared_machine import shared_ratios


def test_the_best_of_ours_stands_beside_the_best_of_all_peers_and_of_ours_undrafted() -> None:
    figures = ratios(
        {
            "fp32_undrafted_b16": 100.0, "fp32_strict_b16": 150.0, "fp32_relaxed_b16": 180.0,
            "int8_undrafted_b16": 200.0, "int8_strict_b16": 300.0, "int8_relaxed_b16": 285.0,
            "vllm_b16": 90.0, "vllm_suffix_b16": 120.0, "bf16_vllm_b16": 140.0, "llamacpp_q8_b16": 150.0,
            "generate_b16": 50.0,
        },
        (16,),
    )  # fmt: skip
    assert figures["best_vs_peers_b16"] == 2.0
    assert figures["best_over_undrafted_b16"] == 1.5
    assert figures["fp32_relaxed_over_undrafted_b16"] == 1.8
    assert figures["fp32_vs_vllm_b16"] == 1.5
    assert figures["int8_over_fp32_b16"] == 2.0
    assert figures["relaxed_over_strict_worst"] == 0.95
    assert figures["relaxed_best_vs_generate_best"] == 3.6


def test_figures_of_what_was_not_measured_are_there_as_nothing() -> None:
    figures = ratios({"fp32_relaxed_b2": 3.0}, (2,))
    assert set(figures.values()) == {None}
    assert {"best_vs_peers_b2", "best_vs_peers_b32", "fp32_vs_vllm_b4", "int8_over_fp32_b32"} <= set(figures)


def test_a_cold_engine_is_neither_drafted_nor_a_peer() -> None:
    figures = ratios({"fp32_cold_b16": 900.0, "fp32_relaxed_b16": 180.0, "vllm_b16": 90.0}, (16,))
    assert figures["best_vs_peers_b16"] == 2.0


def test_a_shared_machine_is_judged_by_the_worse_neighbour_and_by_medians() -> None:
    alone = {"alone": 100.0, "spin": 60.0, "stream": 50.0, "two_engines": 90.0, "actively_waiting": 102.0}
    slow = {name: speed / 10 for name, speed in alone.items()}
    assert shared_ratios([alone, slow, alone]) == {
        "busy_ratio": 0.5,
        "two_engines_ratio": 0.9,
        "idle_cost": pytest.approx(0.98, abs=0.001),
    }
    assert set(shared_ratios([]).values()) == {None}
