"""What transformers offers without this engine: the baselines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dare_core import models
from dare_core.config.settings import Settings

if TYPE_CHECKING:
    from dare_core.models import LanguageModel


@dataclass(frozen=True)
class Run:
    """New tokens of some prompts' texts, in the prompts' order, and the seconds it took to write them; no loading."""

    texts: list[list[int]]
    seconds: float

    @property
    def tokens(self) -> int:
        """New tokens of all texts."""
        return sum(map(len, self.texts))

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all texts per second."""
        return self.tokens / self.seconds


def generate_plainly(
    language_model: "LanguageModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    **options: Any,
) -> Run:
    """``model.generate`` without sampling, on transformers' default attention, prompts padded on the left in batches.

    Args:
        language_model: a model that no engine has taken over.
        prompts: token ids.
        max_new_tokens: length of a text at most; what a batch writes behind a text's end is cut off.
        batch_size: prompts in one call.
        options: further ones of ``generate``, such as ``prompt_lookup_num_tokens``.
    """
    import torch

    model, ends = language_model.model, language_model.eos_token_ids
    padding = min(ends, default=0)
    texts: list[list[int]] = []
    started = time.perf_counter()
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
            **options,
        )
        texts += [_until_end(row, ends) for row in out[:, width:].tolist()]
    return Run(texts, time.perf_counter() - started)


def generate_continuously(
    language_model: "LanguageModel", prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Run:
    """``model.generate_batch``: transformers' continuous batching, all prompts at once, without sampling.

    The cache holds all of them; left to itself it takes what memory the machine has free.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    ends = language_model.eos_token_ids
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=min(ends, default=0)
    )
    batching = ContinuousBatchingConfig(max_batch_tokens=sum(map(len, prompts)))
    batching.num_blocks = sum((len(prompt) + max_new_tokens) // batching.page_size + 2 for prompt in prompts)
    started = time.perf_counter()
    answers = language_model.model.generate_batch([list(prompt) for prompt in prompts], config, batching, warmup=False)
    seconds = time.perf_counter() - started
    by_prompt = {tuple(answer.prompt_ids): answer.generated_tokens for answer in answers.values()}
    return Run([_until_end(by_prompt[tuple(prompt)], ends) for prompt in prompts], seconds)


def baseline(settings: Settings, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> dict[int, Run]:
    """Plain decoding of the same prompts, one at a time and as one padded batch: runs by batch size."""
    language_model = models.load_model(settings)
    generate_plainly(language_model, prompts[:1], 4, 1)  # warm-up
    return {size: generate_plainly(language_model, prompts, max_new_tokens, size) for size in (1, len(prompts))}


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1]
