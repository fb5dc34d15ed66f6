"""The figures of ``dare bench decode --engine vllm``."""

from bench.vllm_decode import ratios


def test_ratios_are_over_plain_vllm_and_over_its_better_half_when_busy() -> None:
    speeds = {
        "vllm_b1": 20.0, "vllm_ngram_b1": 30.0, "vllm_dare_strict_b1": 50.0, "vllm_dare_relaxed_b1": 90.0,
        "vllm_b16": 200.0, "vllm_ngram_b16": 250.0, "vllm_dare_strict_b16": 190.0, "vllm_dare_relaxed_b16": 300.0,
        "engine_strict_b1": 100.0, "engine_relaxed_b1": 99.0, "engine_strict_b16": 95.0, "engine_relaxed_b16": 330.0,
    }  # fmt: skip
    figures = ratios(speeds, (1, 16))
    assert figures["vllm_dare_strict_b1"] == 2.5
    assert figures["vllm_dare_relaxed_b1"] == 4.5
    assert figures["vllm_dare_relaxed_b4"] is None
    assert figures["vllm_dare_relaxed_b16"] == 1.2
    assert figures["vllm_dare_strict_worst"] == 0.95
    assert figures["engine_over_vllm_dare_strict_b1"] == 2.0
    assert figures["engine_over_vllm_dare_relaxed_b16"] == 1.1
