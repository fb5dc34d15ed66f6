"""The projection on synthetic records, whose acceptance is known."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.project import BATCH_SIZES, GPUS, MODELS, POLICIES, Launches, Shape, project, seconds, work
from dare_core.errors import InputError

SMALL = Shape(30, 576, 1536, 9, 3, 64, 49_152, 134_515_008, 4)
LAUNCHES = {"per_layer": 5, "outside_layers": 0}


def chains(probability: float, passed: int, mode: str = "relaxed", nodes: int = 64) -> dict[str, Any]:
    """A recorded step: chains of depth 12, in the first of which so many nodes passed."""
    depths = np.arange(nodes) % 12 + 1
    accepted = (np.arange(nodes) < 12) & (depths <= passed)
    likely = np.full(nodes, probability) ** depths
    order = np.argsort(-likely, kind="stable")
    return {
        "mode": mode,
        "text": "a",
        "context": 300,
        "probabilities": likely[order].tolist(),
        "depths": depths[order].tolist(),
        "accepted": accepted[order].tolist(),
    }


def cpu_steps(n: int = 200) -> pa.Table:
    """Steps of a CPU that behaves as a roofline does."""
    rows = np.arange(1, n + 1)
    sequences = np.minimum(rows, 4)
    context = sequences * 200
    flops, traffic = work(SMALL, rows, rows, sequences, context)
    return pa.table(
        {
            "rows": pa.array(rows, pa.int32()),
            "logit_rows": pa.array(rows, pa.int32()),
            "sequences": pa.array(sequences, pa.int32()),
            "context": pa.array(context, pa.int64()),
            "seconds": np.maximum(flops / 140e9, traffic / 18e9),
        }
    )


def write(folder: Path, trees: Sequence[dict[str, Any]], steps: pa.Table | None = None) -> Path:
    schema = pa.schema(
        {
            "mode": pa.string(),
            "text": pa.string(),
            "context": pa.int32(),
            "probabilities": pa.list_(pa.float32()),
            "depths": pa.list_(pa.int16()),
            "accepted": pa.list_(pa.bool_()),
        }
    )
    pq.write_table(pa.Table.from_pylist(list(trees), schema), folder / "acceptance.parquet")
    metadata = {"model": json.dumps(asdict(SMALL)), "launches": json.dumps(LAUNCHES)}
    pq.write_table((steps or cpu_steps()).replace_schema_metadata(metadata), folder / "steps.parquet")
    return folder


def panels(result: dict[str, Any], mode: str) -> list[dict[str, dict[str, float]]]:
    return [by_mode[mode] for by_model in result["speedup"].values() for by_mode in by_model.values()]


def test_chains_of_twelve_that_all_pass_give_thirteen_times_where_memory_is_the_limit(tmp_path: Path) -> None:
    result = project(write(tmp_path, [chains(1.0, 12, nodes=60)]), None)
    for policy in ("fixed", "budgeted"):
        assert result["speedup"]["H100 SXM"]["7B"]["relaxed"][policy]["1"] == pytest.approx(13, rel=0.01)


def test_where_nothing_passes_a_budget_loses_little_and_fixed_trees_cost_more_the_larger_the_batch(
    tmp_path: Path,
) -> None:
    result = project(write(tmp_path, [chains(0.001, 0)]), None)
    for panel in panels(result, "relaxed"):
        assert all(factor >= 0.98 for factor in panel["budgeted"].values())
        fixed = list(panel["fixed"].values())
        assert fixed == sorted(fixed, reverse=True)
        assert all(factor < 0.75 for batch, factor in panel["fixed"].items() if int(batch) >= 32)


def test_a_calibrated_budget_never_loses_to_either_fixed_policy(tmp_path: Path) -> None:
    likely = [chains(0.9, 12, nodes=12)] * 28 + [chains(0.9, passed, nodes=12) for passed in range(12)] * 6
    result = project(write(tmp_path, likely), None)
    for panel in panels(result, "relaxed"):
        for batch, factor in panel["budgeted"].items():
            assert factor >= 0.99 * max(1.0, panel["fixed"][batch])


def test_only_the_deepest_accepted_node_counts(tmp_path: Path) -> None:
    wide = {
        "mode": "strict",
        "text": "a",
        "context": 300,
        "probabilities": [0.9, 0.8, 0.7, 0.6],
        "depths": [1, 1, 2, 2],
    }
    result = project(write(tmp_path, [wide | {"accepted": [True, True, False, True]}]), None)
    assert result["speedup"]["H100 SXM"]["7B"]["strict"]["fixed"]["1"] == pytest.approx(3, rel=0.01)


def test_steps_without_drafts_are_plain_decoding_under_every_policy(tmp_path: Path) -> None:
    result = project(write(tmp_path, [chains(1.0, 0, nodes=0)]), None)
    factors = {f for panel in panels(result, "relaxed") for by_batch in panel.values() for f in by_batch.values()}
    assert factors == {1.0}


def test_plain_is_the_measure_and_modes_are_kept_apart(tmp_path: Path) -> None:
    record = write(tmp_path, [chains(0.9, 2, "strict"), chains(0.9, 6, "relaxed")])
    by_mode = project(record, None)["speedup"]["H100 SXM"]["7B"]
    assert set(by_mode["strict"]["plain"].values()) == {1.0}
    assert by_mode["strict"]["fixed"]["1"] == pytest.approx(3, rel=0.01)
    assert by_mode["relaxed"]["fixed"]["1"] == pytest.approx(7, rel=0.01)


def test_batches_that_do_not_fit_in_memory_are_missing(tmp_path: Path) -> None:
    speedup = project(write(tmp_path, [chains(0.9, 6)]), None)["speedup"]
    assert list(speedup["H100 SXM"]["1B"]["relaxed"]["plain"]) == [str(size) for size in BATCH_SIZES]
    assert "256" not in speedup["H100 SXM"]["13B"]["relaxed"]["plain"]
    assert speedup["A10"]["13B"]["relaxed"] == {policy: {} for policy in POLICIES}


def test_the_result_is_the_same_each_time_and_survives_json(tmp_path: Path) -> None:
    record = write(tmp_path, [chains(0.8, passed) for passed in (0, 1, 3, 8)])
    result = project(record, None)
    assert result == project(record, None) == json.loads(json.dumps(result))
    assert result["projection"] is True
    assert "135M" in result["assumptions"]["acceptance"]


def test_a_cpu_that_behaves_as_a_roofline_is_predicted(tmp_path: Path) -> None:
    assert project(write(tmp_path, [chains(0.8, 3)]), None)["cpu_check_error"] < 0.02


def test_a_cpu_that_does_not_is_reported(tmp_path: Path) -> None:
    steps = cpu_steps()
    slow = steps["seconds"].to_numpy().copy()
    slow[20:180] *= 2
    record = write(tmp_path, [chains(0.8, 3)], steps.set_column(4, "seconds", pa.array(slow)))
    assert project(record, None)["cpu_check_error"] == pytest.approx(0.5, abs=0.05)


def test_a_record_of_two_steps_has_none_to_check(tmp_path: Path) -> None:
    assert project(write(tmp_path, [chains(0.8, 3)], cpu_steps(2)), None)["cpu_check_error"] is None


@pytest.mark.parametrize("file", ["acceptance.parquet", "steps.parquet"])
def test_a_missing_file_is_named_with_what_writes_it(tmp_path: Path, file: str) -> None:
    (write(tmp_path, [chains(0.8, 3)]) / file).unlink()
    with pytest.raises(InputError, match=rf"{file}.*dare bench decode"):
        project(tmp_path, None)


def test_an_empty_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no steps"):
        project(write(tmp_path, []), None)


def test_launches_are_priced_as_they_were_counted_and_named_in_the_assumptions(tmp_path: Path) -> None:
    rows, shape, gpu = np.array([8]), MODELS["7B"], GPUS["H100 SXM"]
    few, many = Launches(5, 0), Launches(40, 50)
    apart = seconds(shape, gpu, many, 1, rows) - seconds(shape, gpu, few, 1, rows)
    assert apart[0] == pytest.approx((35 * shape.layers + 50) * 4e-6)
    assumptions = project(write(tmp_path, [chains(0.8, 3)]), None)["assumptions"]
    assert (assumptions["launches_per_layer"], assumptions["launches_outside_layers"]) == (5, 0)


def test_a_record_that_counts_no_launches_is_refused(tmp_path: Path) -> None:
    record = write(tmp_path, [chains(0.8, 3)])
    steps = pq.read_table(record / "steps.parquet")
    pq.write_table(steps.replace_schema_metadata({"model": json.dumps(asdict(SMALL))}), record / "steps.parquet")
    with pytest.raises(InputError, match="counts no launches"):
        project(record, None)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_as_large_as_its_shape_says(name: str) -> None:
    shape = MODELS[name]
    embeddings = shape.hidden * shape.vocabulary
    matrices = shape.layer_weights + embeddings * (1 if name == "1B" else 2)  # the small one ties its embeddings
    assert shape.parameters == pytest.approx(matrices, rel=1e-3)  # norms make the rest


def test_a_chart_is_drawn_on_request(tmp_path: Path) -> None:
    chart = tmp_path / "charts" / "projection.svg"
    project(write(tmp_path, [chains(0.8, 3)]), chart)
    assert chart.read_text().count("<svg") == 1
    assert all(gpu in chart.read_text() for gpu in GPUS)
