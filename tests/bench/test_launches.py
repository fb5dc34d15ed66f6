"""What a step launches, counted on a tiny random model."""

from functools import partial
from pathlib import Path

import pytest
import torch

from bench.launches import count_launches, launches_kernel
from bench.ours import OurEngines
from dare_core.config.settings import Settings
from dare_core.decoding import Request, kernels
from tests.support.tiny_model import save_tiny_model

#: A layer whose normalisations, projections, rotation, attention and feed-forward are one kernel each.
FUSED = 5


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Of two engines, one behind the other."""
    monkeypatch.setattr(kernels, "load", lambda: None)
    settings = Settings(data_dir=tmp_path, model=str(save_tiny_model(tmp_path / "model")))
    prompts = [[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8, 5, 6, 7, 8]]
    requests = [Request(str(i), "a", prompt, 8) for i, prompt in enumerate(prompts)]
    made = []
    for _ in range(2):
        engines = OurEngines(settings, None, 16)
        opened = partial(engines.open, "fp32_cold", len(requests), budget="fixed")
        made.append(count_launches(engines.language_model("fp32").model, opened, requests))
    return made


def test_a_step_launches_more_than_a_fused_kernel_a_layer_and_as_many_each_time(
    counted: list[dict[str, int]],
) -> None:
    assert counted[0] == counted[1]
    assert counted[0]["per_layer"] > FUSED
    assert counted[0]["outside_layers"] > 0


def test_requests_that_never_write_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    settings = Settings(data_dir=tmp_path, model=str(save_tiny_model(tmp_path / "model")))
    engines = OurEngines(settings, None, 16)
    opened = partial(engines.open, "fp32_cold", 2, budget="fixed")
    with pytest.raises(ValueError, match="more new tokens"):
        count_launches(engines.language_model("fp32").model, opened, [Request("a", "a", [1, 2], 1)])


@pytest.mark.parametrize(
    ("operator", "taken", "expected"),
    [
        (torch.ops.aten.add.Tensor, (torch.ones(2), torch.ones(2)), True),
        (torch.ops.aten.add_.Tensor, (torch.ones(2), torch.ones(2)), True),
        (torch.ops.aten.view.default, (torch.ones(2), [1, 2]), False),
        (torch.ops.aten.transpose.int, (torch.ones(2, 3), 0, 1), False),
        (torch.ops.aten.contiguous.default, (torch.ones(2, 3).T,), True),
        (torch.ops.aten.contiguous.default, (torch.ones(2, 3),), False),
        (torch.ops.aten.empty_like.default, (torch.ones(2),), False),
        (torch.ops.aten.add.Tensor, (torch.ones(0), torch.ones(0)), False),
    ],
)
def test_what_computes_launches_and_what_only_looks_does_not(
    operator: torch._ops.OpOverload, taken: tuple[object, ...], expected: bool
) -> None:
    assert launches_kernel(operator, taken, operator(*taken)) is expected
