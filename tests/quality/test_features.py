from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dare_core.config.domains import FeatureQuality
from dare_core.quality.features import FeatureProfile, FeatureSums, check_coverage, check_features, measure, together
from dare_core.schemas import EMBEDDING_WIDTH, KNOWLEDGE_EMBEDDING

BOUNDS = FeatureQuality(drift_min_texts=4)


def texts(*lengths: int) -> pa.Table:
    return pa.table(
        {
            "request_id": [f"r{row}" for row in range(len(lengths))],
            "kind": ["item"] * len(lengths),
            "text": ["x" * length for length in lengths],
        },
        schema=pa.schema([(name, pa.string()) for name in ("request_id", "kind", "text")]),
    )


def vectors(*rows: tuple[float, ...], ids: list[str] | None = None) -> pa.Table:
    wide = np.zeros((len(rows), EMBEDDING_WIDTH), np.float32)
    for place, row in enumerate(rows):
        wide[place, : len(row)] = row
    columns = [
        ids or [f"r{row}" for row in range(len(rows))],
        ["minilm"] * len(rows),
        ["answer"] * len(rows),
        pa.FixedSizeListArray.from_arrays(wide.ravel(), EMBEDDING_WIDTH),
    ]
    return pa.table(columns, schema=KNOWLEDGE_EMBEDDING)


UNLIKE = vectors((1, 0), (0, 1), (0, 0, 1), (0, 0, 0, 1))
ALIKE = vectors((1, 0), (1, 0), (1, 0), (1, 0))


def test_a_profile_says_how_long_texts_are_and_how_much_they_are_alike() -> None:
    assert measure(texts(10, 20, 30, 40), UNLIKE).profile == FeatureProfile(4, 25.0, 1.0, pytest.approx(0.5))
    alike = measure(texts(10, 20, 30, 40), ALIKE).profile
    assert alike is not None and alike.likeness == pytest.approx(1.0)
    assert measure(texts(), vectors()).profile is None


def test_the_sums_of_parts_are_those_of_the_whole() -> None:
    whole, lengths = measure(texts(10, 20, 30, 40), UNLIKE), (10, 20, 30, 40)
    parts = [measure(texts(*lengths).slice(row, 1), UNLIKE.slice(row, 1)) for row in range(4)]
    summed = FeatureSums()
    for part in parts:
        summed = summed.plus(part)
    assert summed.profile == whole.profile
    assert summed.plus(FeatureSums()) == summed == FeatureSums().plus(summed)


def test_runs_count_by_their_texts() -> None:
    merged = together([FeatureProfile(1, 100.0, 1.0, 0.2), FeatureProfile(3, 200.0, 1.0, 0.6)])
    assert merged == FeatureProfile(4, 175.0, 1.0, pytest.approx(0.5))
    assert together([]) is None


def test_texts_that_grew_alike_and_longer_are_warned_of_and_a_bound_may_end_the_run(tmp_path: Path) -> None:
    earlier = {"item": measure(texts(10, 10, 10, 10), UNLIKE).profile}
    now = texts(20, 20, 20, 20)
    warned = check_features({"item": measure(now, ALIKE)}, earlier, BOUNDS, tmp_path, "run")
    assert [(finding.severity, finding.sentence) for finding in warned] == [
        ("warning", "mean characters of item texts: 20, expected 7.5 to 12.5, bound 0.25"),
        ("warning", "mean likeness of item texts: 1, expected 0.425 to 0.575, bound 0.15"),
    ]
    strict = FeatureQuality.model_validate({"drift_min_texts": 4, "length_drift": {"warn": 0.25, "fail": 0.5}})
    ended = check_features({"item": measure(now, UNLIKE)}, earlier, strict, tmp_path, "run")
    assert [(finding.severity, finding.rule) for finding in ended] == [("critical", "mean characters of item texts")]


def test_without_earlier_runs_or_with_few_texts_no_drift_is_seen(tmp_path: Path) -> None:
    few = FeatureQuality(drift_min_texts=5)
    now = {"item": measure(texts(20, 20, 20, 20), ALIKE)}
    assert check_features(now, {}, BOUNDS, tmp_path, "run") == []
    earlier = {"item": FeatureProfile(100, 1.0, 1.0, 0.1)}
    assert check_features(now, earlier, few, tmp_path, "run") == []


def test_a_text_without_a_vector_or_with_one_that_is_not_of_length_one_is_critical(tmp_path: Path) -> None:
    part, good = measure(texts(10, 10, 10), vectors((1,), (3,))), measure(texts(10), vectors((1,)))
    found = check_features({"item": good.plus(part)}, {}, BOUNDS, tmp_path, "run")
    assert [(finding.severity, finding.sentence) for finding in found] == [
        ("critical", "item texts without a vector: 1, expected 0 to 0"),
        ("critical", "item vectors that are not of length 1: 1, expected 0 to 0"),
    ]
    twice = measure(texts(10), vectors((1,), (1,), ids=["r0", "r0"]))
    found = check_features({"item": twice}, {}, BOUNDS, tmp_path, "run")
    assert [finding.rule for finding in found] == ["item texts with several vectors"]


def test_coverage_is_bound_only_where_the_domain_says_so_but_a_lost_text_never_passes(tmp_path: Path) -> None:
    rows = [{"kind": "item", "loaded": 1.0, "coverage": 0.2}, {"kind": "user", "loaded": 0.5, "coverage": 1.0}]
    [lost] = check_coverage(rows, FeatureQuality(), tmp_path, "run")
    assert (lost.severity, lost.found) == ("critical", "1 of 2 (user 1.0), bound 1")
    asked = FeatureQuality.model_validate({"coverage": {"warn": 0.9}})
    [low] = check_coverage(rows[:1], asked, tmp_path, "run")
    assert (low.severity, low.sentence) == ("warning", "share of entities with features: 1 of 1 (item 0.2), bound 0.9")
