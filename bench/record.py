"""What an engine drafted, what of it was accepted, and how long its steps took: input of the projection to GPUs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dare_core.decoding.engine import PackedStep
from dare_core.decoding.verification import Judgement, longest_paths


class Recorder:
    """Observes an engine, and keeps a row for every step, and one for every tree it verified.

    Args:
        mode: the engine's mode of verification.

    Attributes:
        acceptance: per tree the calibrated probability, the depth and the fate of each node, most probable first.
        timings: per step its size and seconds.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self.acceptance: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []

    def __call__(
        self, step: PackedStep, probabilities: NDArray[np.float64], judgement: Judgement, seconds: float
    ) -> None:
        """See :class:`dare_core.decoding.engine.StepObserver`."""
        forest = step.forest
        self.timings.append(
            {
                "rows": step.rows,
                "logit_rows": int(step.first_rows[-1]),
                "sequences": len(step.texts),
                "context": int(step.seen.sum()),
                "seconds": seconds,
            }
        )
        accepted = longest_paths(forest, judgement).tried & judgement.passes
        for i in np.flatnonzero(step.emitting).tolist():
            nodes = np.arange(forest.offsets[i], forest.offsets[i + 1])
            nodes = nodes[np.argsort(-probabilities[nodes], kind="stable")]
            self.acceptance.append(
                {
                    "mode": self._mode,
                    "text": step.texts[i].request.id,
                    "context": int(step.seen[i]),
                    "probabilities": probabilities[nodes].astype(np.float32),
                    "depths": forest.depths[nodes].astype(np.int16),
                    "accepted": accepted[nodes],
                }
            )


def write_record(
    folder: Path,
    model: PreTrainedModel,
    acceptance: Sequence[dict[str, Any]],
    timings: Sequence[dict[str, Any]],
    launches: Mapping[str, int],
) -> None:
    """Write ``acceptance.parquet`` and ``steps.parquet``.

    The latter has in its metadata the model's shape and ``launches``, what :func:`bench.launches.count_launches` gave.
    """
    config = model.config.get_text_config()
    shape = {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "vocabulary": config.vocab_size,
        "parameters": model.num_parameters(),
        "bytes_per_value": model.dtype.itemsize,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(acceptance)), folder / "acceptance.parquet")
    steps = pa.Table.from_pylist(list(timings)).replace_schema_metadata(
        {"model": json.dumps(shape), "launches": json.dumps(launches)}
    )
    pq.write_table(steps, folder / "steps.parquet")
