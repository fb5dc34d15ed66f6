"""Kernels that a step of the engine launches, counted where it runs on torch's own kernels, as on an accelerator.

An operator launches one if it computes: it writes into a tensor, or its result lies in memory of its own. Views,
metadata and bare allocations launch nothing. A linear layer or an attention counts once, as the library call that it is
on an accelerator. Copies from and to the host are not counted.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dare_core.decoding import Engine, Request
from dare_core.decoding.attention import torch_kernels
from dare_core.decoding.engine import PackedStep, StepObserver

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Operators whose results lie in memory of their own, which nothing is written to.
_ALLOCATIONS: Final = frozenset(
    f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)


def count_launches(
    model: "PreTrainedModel", open_engine: Callable[[StepObserver], Engine], requests: Sequence[Request]
) -> dict[str, int]:
    """Launches of a step in which all sequences write: medians of the steps that these requests take.

    Args:
        model: the engine's.
        open_engine: makes it, with an observer; the compiled kernels are turned off (``DARE_KERNELS=0``).
        requests: as many as it has places for.

    Returns:
        ``per_layer``: launches of a decoder layer; ``outside_layers``: all others of a step: embedding, masks, output
        layer, verification, moving what was accepted.

    Raises:
        ValueError: there was no step in which all of them wrote.
    """
    writing = False

    def observe(step: PackedStep, probabilities: object, judgement: object, seconds: float) -> None:
        nonlocal writing
        writing = len(step.texts) == len(requests) and bool((step.chains == 1).all())

    engine = open_engine(observe)
    layers = model.get_decoder().layers
    counts: list[tuple[int, int]] = []
    with ExitStack() as watched:
        launches = _Launches(len(layers))
        watched.enter_context(launches.seeing_attention())
        for index, layer in enumerate(layers):
            watched.callback(layer.register_forward_pre_hook(launches.entering(index)).remove)
            watched.callback(layer.register_forward_hook(launches.leaving()).remove)
        engine.add(requests)
        while engine.busy:
            launches.counts[:] = 0
            with launches:
                engine.step()
            if writing:
                # Masks are made in the first layer that needs one, and serve the others.
                per_layer = int(np.median(launches.counts[:-1]))
                counts.append((per_layer, int(launches.counts.sum()) - len(layers) * per_layer))
    if not counts:
        raise ValueError("in no step did all requests write: ask for more new tokens")
    per_layer, outside = (round(statistics.median(column)) for column in zip(*counts, strict=True))
    return {"per_layer": per_layer, "outside_layers": outside}


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what launches a kernel while it is on.

    Attributes:
        counts: ``[layers + 1]`` int64: by layer, and last of what is in none.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = np.zeros(layers + 1, np.int64)
        self._inside = -1

    def entering(self, layer: int) -> Callable[..., None]:
        """A hook: what follows is the layer's."""

        def enter(*_: object) -> None:
            self._inside = layer

        return enter

    def leaving(self) -> Callable[..., None]:
        """A hook: what follows is no layer's."""
        return self.entering(-1)

    @contextmanager
    def seeing_attention(self) -> Iterator[None]:
        """Attention is one operator to its caller; have those inside it counted instead."""
        attend = torch_kernels.attend

        def seen(*asked: Any) -> Tensor:
            with self:
                return attend(*asked)

        torch_kernels.attend = seen  # type: ignore[assignment]
        try:
            yield
        finally:
            torch_kernels.attend = attend

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it if it computes."""
        made = func(*args, **(kwargs or {}))
        if func.namespace != "dare" and launches_kernel(func, (args, kwargs), made):
            self.counts[self._inside] += 1
        return made


def launches_kernel(operator: Any, taken: Any, made: Any) -> bool:
    """Whether an operator computes: it writes into a tensor, or its result lies in memory of its own.

    Args:
        operator: an overload of ``torch.ops``.
        taken: its arguments.
        made: its result.
    """
    results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor) and leaf.numel()]
    if operator._schema.is_mutable:
        return any(leaf.numel() for leaf in tree_leaves(taken) if isinstance(leaf, Tensor))
    if operator._schema.name in _ALLOCATIONS:
        return False
    given = {_memory(leaf) for leaf in tree_leaves(taken) if isinstance(leaf, Tensor)}
    return any(_memory(result) not in given for result in results)


def _memory(tensor: Tensor) -> object:
    """What tells a tensor's memory from others'; one in a library's own arrangement has none that torch knows of."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()
