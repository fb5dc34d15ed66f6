"""A model's weights, its tokenizer, and what its config says about decoding, loaded by transformers."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dare_core.config.settings import Settings
from dare_core.errors import ModelError
from dare_core.models.generation import check_generation, generation_keys
from dare_core.models.location import locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM ready for the engine.

    Attributes:
        model: in evaluation mode, on its device.
        name: what the user asked for; stored with every text.
        eos_token_ids: tokens that end a text.
        context_length: positions that the model was made for, and that the engine decodes.
    """

    model: "PreTrainedModel"
    name: str
    eos_token_ids: frozenset[int]
    context_length: int


def load_model(settings: Settings) -> LanguageModel:
    """Load ``settings.model`` for decoding.

    Raises:
        ModelError: it is not there, is no causal LM, lacks weights or has none in safetensors, needs
            ``trust_remote_code``, or asks for what draft trees do not support.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    facts, ignored = _facts(settings)
    source = locate(settings)
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise _not_loaded("model", settings.model, error) from error
    if missing := sorted(loaded["missing_keys"]):  # which transformers fills with random numbers
        raise ModelError(f"model {settings.model!r} lacks {len(missing)} of its weights: {missing[0]}, …")
    for name in ignored:  # the baselines of plain decoding decode without them too
        setattr(model.generation_config, name, None)
    model = model.eval().to(torch_device(settings.device))
    return LanguageModel(model, settings.model, facts.eos_token_ids, facts.context_length)


@dataclass(frozen=True)
class ModelFacts:
    """What a model's folder says about decoding.

    Attributes:
        eos_token_ids: tokens that end a text.
        context_length: positions that the model was made for, and that the engine decodes.
    """

    eos_token_ids: frozenset[int]
    context_length: int


def model_facts(settings: Settings) -> ModelFacts:
    """The facts of ``settings.model``, without its weights.

    Raises:
        ModelError: it is not there, or asks for what draft trees do not support.
    """
    return _facts(settings)[0]


def cached_numbers(settings: Settings) -> int:
    """How many numbers ``settings.model`` keeps of a position: its keys and values in all layers.

    Raises:
        ModelError: it is not there.
    """
    config = _load_config(settings).get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim)


def vocabulary_size(settings: Settings) -> int:
    """Token ids of ``settings.model`` are below it: its embedding's rows, often more than its tokenizer names.

    Raises:
        ModelError: it is not there.
    """
    return int(_load_config(settings).get_text_config().vocab_size)


def _load_config(settings: Settings) -> Any:
    import transformers

    _quieten()
    try:
        return transformers.AutoConfig.from_pretrained(locate(settings), trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded("config", settings.model, error) from error


def _facts(settings: Settings) -> tuple[ModelFacts, list[str]]:
    """A model's facts, and the keys of its generation config that the settings say to ignore."""
    config = _load_config(settings).get_text_config()
    generation = generation_keys(locate(settings))
    eos = generation.get("eos_token_id", config.eos_token_id)
    ends = frozenset([eos] if isinstance(eos, int) else eos or [])
    return ModelFacts(ends, context_length(settings)), check_generation(settings, generation)


def load_tokenizer(settings: Settings) -> "PreTrainedTokenizerBase":
    """The tokenizer of ``settings.model``.

    Raises:
        ModelError: it is not there.
    """
    import transformers

    _quieten()
    source = locate(settings)
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded("tokenizer", settings.model, error) from error


def context_length(settings: Settings) -> int:
    """Positions that ``settings.model`` was made for, and that ``settings.engine`` decodes.

    Raises:
        ModelError: it is not there, or does not say.
    """
    config = _load_config(settings).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise ModelError(f"the config of model {settings.model!r} names no max_position_embeddings; add it there")
    if settings.engine != "transformers":
        return positions
    from dare_core.decoding.rotary import rotary_limit

    return min(positions, rotary_limit(config) or positions)


def torch_device(name: str) -> str:
    """The device that a setting names; of ``auto`` the best of this machine."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _quieten() -> None:
    """Our own errors say what failed; the hub client's retries and progress bars would only bury them."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)


def _not_loaded(what: str, name: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(f"{what} {name!r} could not be loaded: {reason}")
