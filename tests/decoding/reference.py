"""What the engine is held to: transformers' own greedy decoding, and DESIGN.md decision 9's notion of a tie."""

import torch
from transformers import PreTrainedModel

TIE_GAP = 1e-3


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """``model.generate`` without sampling, on the attention that transformers ships."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)
    text: list[int] = out[0, len(prompt) :].tolist()
    return text


@torch.inference_mode()
def is_tie(model: PreTrainedModel, prompt: list[int], expected: list[int], got: list[int]) -> bool:
    """Whether the first difference is one between two tokens of (nearly) equal logits."""
    model.set_attn_implementation("eager")
    at = next(i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b)
    top = model(torch.tensor([prompt + expected[:at]])).logits[0, -1].topk(2)
    return set(top.indices.tolist()) == {expected[at], got[at]} and float(top.values[0] - top.values[1]) < TIE_GAP
