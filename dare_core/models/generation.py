"""What a model's ``generation_config.json`` asks: obeyed, of no effect on greedy decoding, or refused by name.

A key that stands in neither list is refused: silently ignored, it would make strict texts differ from those of
``model.generate(do_sample=False)``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.config.settings import Settings
from dare_core.errors import ModelError

_FILE: Final = "generation_config.json"

#: Obeyed: where a text ends. How long it may get is our own setting, as ``max_new_tokens`` of ``generate`` would be.
_OBEYED: Final = frozenset({"eos_token_id", "max_length", "max_new_tokens"})

#: Of no effect on which tokens greedy decoding of one text picks.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "renormalize_logits",
        "early_stopping",
        "length_penalty",
        "diversity_penalty",
        "low_memory",
        "use_cache",
        "cache_config",
        "max_cache_len",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "use_mtp",
        "speculation_type",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "max_matching_ngram_size",
        "assistant_confidence_threshold",
        "prompt_lookup_num_tokens",
        "assistant_early_exit",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "transformers_version",
        "trust_remote_code",
    }
)

#: Keys that would change texts, at the values at which they do not; nothing, or an empty list, never does.
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "cache_implementation": ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid"),
}
#: What ``ignore_penalties`` ignores.
_PENALTIES: Final = ("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "suppress_tokens")


def generation_keys(source: str) -> dict[str, Any]:
    """What the model at ``source`` sets for generation, in its own file or, as older ones do, in its config.

    Raises:
        ModelError: the file is damaged.
    """
    import transformers
    from transformers.utils import cached_file

    try:
        path = cached_file(source, _FILE)
    except OSError:  # it has none
        path = None
    if path is None:
        found = transformers.GenerationConfig.from_pretrained(
            source, config_file_name="config.json", _from_model_config=True
        ).to_dict()
    else:
        try:
            found = json.loads(Path(path).read_text("utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not valid JSON: {error}; fetch the model again") from error
        if not isinstance(found, dict):
            raise ModelError(f"{path} holds no keys and values; fetch the model again")
    return {name: value for name, value in found.items() if value is not None and not name.startswith("_")}


def check_generation(settings: Settings, keys: Mapping[str, Any]) -> list[str]:
    """See that strict texts are those of ``generate(do_sample=False)`` under a model's generation config.

    Returns:
        Keys that would change texts, and which the settings say to ignore.

    Raises:
        ModelError: there are others; names all of them, and the setting.
    """
    ignored = {*settings.ignore_generation_config, *(_PENALTIES if settings.ignore_penalties else ())}
    asked = [name for name, value in keys.items() if _matters(name, value)]
    if refused := sorted(set(asked) - ignored):
        raise ModelError(
            f"model {settings.model!r} asks for {', '.join(refused)} in its generation config, which draft trees do "
            f"not support; set DARE_IGNORE_GENERATION_CONFIG={','.join(refused)} to decode without"
        )
    return asked


def _matters(name: str, value: object) -> bool:
    if name in _OBEYED or name in _WITHOUT_EFFECT or value in ([], {}, ""):
        return False
    return value not in _NEUTRAL.get(name, ())
