"""What an engine drafted, what of it was accepted, and how long its steps took: input of the projection to GPUs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from transformers import PreTrainedModel

from dare_core.decoding.engine import Engine, OnTokens, Result, _Step
from dare_core.decoding.verification import Judgement, longest_paths


class RecordingEngine(Engine):
    """An engine that keeps a row for every step, and one for every tree it verified.

    Attributes:
        acceptance: per tree the calibrated probability, the depth and the fate of each node, most probable first.
        timings: per step its size and seconds.
    """

    def __init__(self, *arguments: Any) -> None:
        self.acceptance: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []
        super().__init__(*arguments)
        self.timings.clear()  # of the measurements at the start

    def _forward(self, step: _Step) -> Tensor:
        started = time.perf_counter()
        logits = super()._forward(step)
        self.timings.append(
            {
                "rows": int(step.chains.sum()) + len(step.forest),
                "logit_rows": len(logits),
                "sequences": len(step.slots),
                "context": int(self._cache.lengths[step.slots].sum()),
                "seconds": time.perf_counter() - started,
            }
        )
        return logits

    def _commit(self, step: _Step, judgement: Judgement, on_tokens: OnTokens | None) -> list[Result]:
        if self._acceptance is not None:
            forest = step.forest
            probabilities = self._acceptance.path_probabilities(forest)
            accepted = longest_paths(forest, judgement, self._config.rule.max_run).tried & judgement.passes
            for i, sequence in enumerate(step.sequences):
                if not step.emitting[i]:
                    continue
                nodes = np.arange(forest.offsets[i], forest.offsets[i + 1])
                nodes = nodes[np.argsort(-probabilities[nodes], kind="stable")]
                self.acceptance.append(
                    {
                        "mode": self._config.rule.mode,
                        "text": sequence.request.id,
                        "context": int(self._cache.lengths[sequence.slot]),
                        "probabilities": probabilities[nodes].astype(np.float32),
                        "depths": forest.depths[nodes].astype(np.int16),
                        "accepted": accepted[nodes],
                    }
                )
        return super()._commit(step, judgement, on_tokens)


def write_record(
    folder: Path, model: PreTrainedModel, acceptance: Sequence[dict[str, Any]], timings: Sequence[dict[str, Any]]
) -> None:
    """Write ``acceptance.parquet`` and ``steps.parquet``, the latter with the model's shape in its metadata."""
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
    steps = pa.Table.from_pylist(list(timings)).replace_schema_metadata({"model": json.dumps(shape)})
    pq.write_table(steps, folder / "steps.parquet")
