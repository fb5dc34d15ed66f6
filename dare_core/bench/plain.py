"""Plain decoding with transformers: the baseline."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dare_core import models
from dare_core.settings import Settings

if TYPE_CHECKING:
    from dare_core.models import LanguageModel


@dataclass(frozen=True)
class Timing:
    """New tokens, and the seconds it took to write them; loading excluded."""

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences per second."""
        return self.tokens / self.seconds


def generate_plainly(
    language_model: "LanguageModel", prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> Timing:
    """``model.generate`` without sampling, on transformers' default attention, prompts padded on the left in batches.

    Tokens that a batch writes behind a sequence's end are not counted.
    """
    import torch

    model = language_model.model
    model.set_attn_implementation("sdpa")
    ends = torch.tensor(sorted(language_model.eos_token_ids), dtype=torch.long)
    padding = min(language_model.eos_token_ids, default=0)
    tokens, started = 0, time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=padding,
        )[:, width:].cpu()
        ended_before = torch.isin(out, ends).long().cumsum(1) - torch.isin(out, ends).long() > 0
        tokens += int((~ended_before).sum())
    return Timing(tokens, time.perf_counter() - started)


def baseline(settings: Settings, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> dict[int, Timing]:
    """Plain decoding of the same prompts, one at a time and as one padded batch: timings by batch size."""
    language_model = models.load_model(settings)
    generate_plainly(language_model, prompts[:1], 4, 1)  # warm-up
    return {size: generate_plainly(language_model, prompts, max_new_tokens, size) for size in (1, len(prompts))}
