"""``dare bench project``: what the recorded acceptance would be worth on GPUs that were not at hand. Not a measurement.

``dare bench decode`` records, for every step of a sequence, which of 64 drafted nodes passed. Here those steps are
replayed in batches, and each batch's step is priced by a roofline: the longer of moving the bytes and doing the
arithmetic, and the launches of its kernels, as many as were counted in a step of this engine (:mod:`bench.launches`).

The acceptance was recorded with a small model (135M parameters by default) on a CPU; a larger model writes other texts
and may accept more or less of its drafts. The same cost model, given two measured extremes of the CPU, predicts all
other steps that were timed there; ``cpu_check_error`` says how well.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dare_core.decoding.budget import worthwhile
from dare_core.errors import InputError

BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODES: Final = ("strict", "relaxed")
POLICIES: Final = ("plain", "fixed", "budgeted")

#: Committed tokens of every sequence, in each step that is projected.
_CONTEXT: Final = 300
#: Nodes that a place in the cache has room for behind its sequence (paper: 64).
_DRAFT_NODES: Final = 64
#: Steps drawn per batch size and mode, and the recorded trees drawn for them, at least.
_STEPS: Final = 200
_DRAWN: Final = 1024
#: What well-written kernels reach of a data sheet's bandwidth and arithmetic.
_OF_BANDWIDTH: Final = 0.7
_OF_ARITHMETIC: Final = 0.6
#: Seconds that launching a kernel takes. Without CUDA graphs, since trees differ in every step.
_LAUNCH: Final = 4e-6
#: Of the memory, what weights, keys and values may take.
_OF_MEMORY: Final = 0.9
#: The steps with the fewest and the most rows that the CPU's two figures are taken from: this share of all steps each.
_EXTREMES: Final = 0.05

#: Seconds of steps, by rows.
Cost = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Gpu:
    """A data sheet.

    Attributes:
        flops: per second, bf16 without sparsity.
        bandwidth: bytes per second.
        memory: bytes.
    """

    flops: float
    bandwidth: float
    memory: float


@dataclass(frozen=True)
class Shape:
    """A decoder in Llama's form.

    Attributes:
        parameters: all of them; tied embeddings once.
        bytes_per_value: of weights, keys and values.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    parameters: int
    bytes_per_value: int

    @property
    def layer_weights(self) -> int:
        """Weights that every row is multiplied by: projections of attention and gated feed-forward, all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one position's keys and values, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value


@dataclass(frozen=True)
class Launches:
    """Kernels that a step launches.

    Attributes:
        per_layer: by each layer.
        outside_layers: by the rest of the step.
    """

    per_layer: int
    outside_layers: int

    def of(self, shape: Shape) -> int:
        """Launches of a step of this model."""
        return shape.layers * self.per_layer + self.outside_layers


GPUS: Final = {
    "H100 SXM": Gpu(flops=989e12, bandwidth=3.35e12, memory=80e9),
    "A10": Gpu(flops=125e12, bandwidth=600e9, memory=24e9),
}

#: Llama-3.2-1B, Llama-2-7B (the paper's size) and Llama-2-13B, in bf16.
MODELS: Final = {
    "1B": Shape(16, 2048, 8192, 32, 8, 64, 128_256, 1_235_814_400, 2),
    "7B": Shape(32, 4096, 11008, 32, 32, 128, 32_000, 6_738_415_616, 2),
    "13B": Shape(40, 5120, 13824, 40, 40, 128, 32_000, 13_015_864_320, 2),
}


def project(record: Path, chart: Path | None) -> dict[str, Any]:
    """Project the speed-up over plain decoding on GPUs, by batch size.

    Three policies are compared: ``plain`` drafts nothing, ``fixed`` verifies all recorded nodes (paper: 64),
    ``budgeted`` those that :func:`dare_core.decoding.budget.worthwhile` picks with the roofline as its cost.

    Args:
        record: the folder with ``acceptance.parquet`` and ``steps.parquet`` that ``dare bench decode`` wrote.
        chart: where to draw the result (SVG or PNG), if anywhere.

    Returns:
        ``speedup[gpu][model][mode][policy][batch]``: tokens per second over those of ``plain``; batch sizes are
        strings, and those that the GPU's memory cannot hold are missing. ``cpu_check_error``: median absolute relative
        error of the cost model's prediction of the CPU's steps, those it was given left out; None where no others were
        timed. ``assumptions``: what all of it rests on.

    Raises:
        InputError: a file is missing, holds no steps, or was recorded before launches were counted.
    """
    acceptance = _read(record / "acceptance.parquet")
    steps = _read(record / "steps.parquet")
    metadata = steps.schema.metadata
    if b"launches" not in metadata:
        raise InputError(f"{record / 'steps.parquet'} counts no launches: run `dare bench decode` again")
    recorded_with, launches = Shape(**json.loads(metadata[b"model"])), Launches(**json.loads(metadata[b"launches"]))
    speedup: dict[str, dict[str, dict[str, Any]]] = {
        gpu: {model: {mode: {policy: {} for policy in POLICIES} for mode in MODES} for model in MODELS} for gpu in GPUS
    }
    for mode in MODES:
        trees = Trees.of_mode(acceptance, mode)
        for batch in BATCH_SIZES if len(trees.sizes) else ():
            rows = np.arange(1 + batch * (1 + trees.probabilities.shape[1]))  # however many are verified
            fitting = {
                (gpu, model): seconds(MODELS[model], GPUS[gpu], launches, batch, rows).take
                for gpu in GPUS
                for model in MODELS
                if _fits(GPUS[gpu], MODELS[model], batch)
            }
            for (gpu, model), by_policy in _replay(trees, batch, fitting).items():
                for policy, factor in by_policy.items():
                    speedup[gpu][model][mode][policy][str(batch)] = round(factor, 3)
    error = cpu_check_error(recorded_with, steps)
    result: dict[str, Any] = {
        "projection": True,
        "speedup": speedup,
        "cpu_check_error": None if error is None else round(error, 4),
        "assumptions": _assumptions(recorded_with, launches),
    }
    if chart:
        from bench.charts import draw_projection

        draw_projection(result, chart)
    return result


@dataclass(frozen=True, eq=False)
class Trees:
    """The recorded trees of one mode, ``n`` of at most ``w`` nodes each, every tree's most probable node first;
    0 behind its last.

    Attributes:
        sizes: ``[n]`` int64: nodes.
        probabilities: ``[n, w]`` float64: calibrated, that a node and all its ancestors are accepted.
        gains: ``[n, w]`` int64: tokens that verifying a node adds to its sequence when all before it are verified.
    """

    sizes: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    gains: NDArray[np.int64]

    @classmethod
    def of_mode(cls, acceptance: pa.Table, mode: str) -> "Trees":
        """The trees in ``acceptance.parquet`` that were verified in ``mode``."""
        rows = acceptance.filter(pc.equal(acceptance["mode"], mode)).combine_chunks()
        sizes = pc.list_value_length(rows["probabilities"]).to_numpy().astype(np.int64)
        present = np.arange(sizes.max(initial=0)) < sizes[:, None]

        def padded(column: str) -> NDArray[np.float64]:
            cells = np.zeros(present.shape)
            cells[present] = pc.list_flatten(rows[column]).to_numpy()
            return cells

        # A sequence emits as many drafted tokens as its deepest accepted node is deep.
        reached = np.maximum.accumulate(padded("depths") * padded("accepted"), axis=1).astype(np.int64)
        return cls(sizes, padded("probabilities"), np.diff(reached, axis=1, prepend=0))


def work(
    shape: Shape, rows: NDArray[np.int64], logit_rows: NDArray[np.int64], sequences: Any, context: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Arithmetic and traffic of steps; activations between kernels are taken to stay on the chip.

    Args:
        shape: of the model.
        rows: ``[n]`` tokens and nodes through the model.
        logit_rows: ``[n]`` rows that logits are made of.
        sequences: ``[n]`` or a number.
        context: ``[n]`` or a number: committed tokens of all sequences together.

    Returns:
        Floating-point operations and bytes, ``[n]`` float64 each.
    """
    head = shape.hidden * shape.vocabulary
    attended = rows * (context / sequences)
    flops = 2.0 * (shape.layer_weights * rows + head * logit_rows)
    flops = flops + 4.0 * shape.layers * shape.heads * shape.head_dim * attended
    logits = 2.0 * logit_rows * shape.vocabulary  # written, and read by verification
    traffic = shape.bytes_per_value * (shape.layer_weights + head + logits) + shape.kv_bytes * (context + 1.0 * rows)
    return flops, traffic


def seconds(shape: Shape, gpu: Gpu, launches: Launches, sequences: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Roofline: seconds of decode steps of ``rows`` (``[n]``) tokens and nodes on a GPU, logits made of all of them."""
    flops, traffic = work(shape, rows, rows, sequences, sequences * _CONTEXT)
    slower = np.maximum(flops / (_OF_ARITHMETIC * gpu.flops), traffic / (_OF_BANDWIDTH * gpu.bandwidth))
    priced: NDArray[np.float64] = slower + launches.of(shape) * _LAUNCH
    return priced


def cpu_check_error(shape: Shape, steps: pa.Table) -> float | None:
    """How far the roofline is from the steps timed on the CPU: the median of ``|predicted - measured| / measured``.

    Its bandwidth is what the steps with the fewest rows reached, its arithmetic what those with the most did; all other
    steps are predicted. None where there are no others.
    """
    columns = ("rows", "logit_rows", "sequences", "context", "seconds")
    rows, logit_rows, sequences, context, measured = (steps[name].to_numpy() for name in columns)
    flops, traffic = work(shape, rows.astype(np.int64), logit_rows.astype(np.int64), sequences, context)
    order = np.argsort(rows, kind="stable")
    extremes = max(1, round(_EXTREMES * len(order)))
    fewest, most, others = order[:extremes], order[-extremes:], order[extremes:-extremes]
    if not len(others):
        return None
    bandwidth = np.median(traffic[fewest] / measured[fewest])
    arithmetic = np.median(flops[most] / measured[most])
    predicted = np.maximum(traffic / bandwidth, flops / arithmetic)
    return float(np.median(np.abs(predicted - measured)[others] / measured[others]))


def _replay(trees: Trees, batch: int, costs: Mapping[tuple[str, str], Cost]) -> dict[tuple[str, str], dict[str, float]]:
    """Speed-up of each policy under each cost, over steps of ``batch`` recorded trees drawn with a fixed seed."""
    random, steps, recorded = np.random.default_rng(batch), max(_STEPS, _DRAWN // batch), len(trees.sizes)
    # Every tree is drawn as often as any other, so that batch sizes differ by their cost and not by luck.
    rounds = [random.permutation(recorded) for _ in range(-(-steps * batch // recorded))]
    draws = np.concatenate(rounds)[: steps * batch].reshape(steps, batch)
    tokens = {(at, policy): 0.0 for at in costs for policy in POLICIES}
    spent = dict(tokens)
    columns = np.arange(trees.probabilities.shape[1])
    for drawn in draws:
        present = columns < trees.sizes[drawn, None]
        probabilities = trees.probabilities[drawn][present]
        # Sorted once for all costs: then what `worthwhile` keeps is always the first so many.
        best_first = np.argsort(-probabilities, kind="stable")
        probabilities = probabilities[best_first]
        emitted = batch + np.concatenate([[0], np.cumsum(trees.gains[drawn][present][best_first])])
        for at, cost in costs.items():
            budget = int(worthwhile(probabilities, batch, batch, cost).sum())
            nodes = np.array([0, len(probabilities), budget])
            for policy, made, took in zip(POLICIES, emitted[nodes], cost(batch + nodes), strict=True):
                tokens[at, policy] += float(made)
                spent[at, policy] += float(took)
    speed = {key: tokens[key] / spent[key] for key in tokens}
    return {at: {policy: speed[at, policy] / speed[at, "plain"] for policy in POLICIES} for at in costs}


def _fits(gpu: Gpu, shape: Shape, batch: int) -> bool:
    cache = batch * (_CONTEXT + _DRAFT_NODES) * shape.kv_bytes
    return shape.parameters * shape.bytes_per_value + cache <= _OF_MEMORY * gpu.memory


def _assumptions(recorded_with: Shape, launches: Launches) -> dict[str, Any]:
    return {
        "acceptance": f"recorded with a model of {recorded_with.parameters / 1e6:.0f}M parameters on a CPU; "
        "a larger model's may differ",
        "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()},
        "models": {name: asdict(shape) for name, shape in MODELS.items()},
        "share_of_bandwidth": _OF_BANDWIDTH,
        "share_of_arithmetic": _OF_ARITHMETIC,
        "share_of_memory": _OF_MEMORY,
        "launches": "operators of torch that compute, counted in steps of this engine on torch's own kernels: a linear "
        "layer or an attention is one, views and copies from and to the host are none; nothing is fused or overlapped",
        "launches_per_layer": launches.per_layer,
        "launches_outside_layers": launches.outside_layers,
        "launch_seconds": _LAUNCH,
        "cuda_graphs": False,
        "context": _CONTEXT,
        "left_out": "prompts, activations between kernels, the host's time to draft, verify and commit",
    }


def _read(path: Path) -> pa.Table:
    if not path.exists():
        raise InputError(f"{path} is missing: run `dare bench decode` first, which records it")
    table = pq.read_table(path)
    if not len(table):
        raise InputError(f"{path} holds no steps: run `dare bench decode` again")
    return table
