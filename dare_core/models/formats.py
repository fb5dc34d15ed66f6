"""What decides how prompts are encoded: a model's tokenizer and chat template, known without loading them again."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dare_core.config.settings import Settings
from dare_core.models.loading import context_length, load_tokenizer
from dare_core.models.location import locate
from dare_core.storage.atomic import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Of the files that a prompt's encoding depends on; weights have others.
_FORMAT_SUFFIXES: Final = (".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class PromptFormat:
    """What decides how prompts are encoded, and how long they may be.

    Attributes:
        files: identifies the content of the tokenizer's files, the chat template among them.
        tokenizer_hash: see :func:`tokenizer_hash`.
        context_length: see :func:`~dare_core.models.loading.context_length`.
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
    kept = settings.models_dir / "formats" / f"{files}-{settings.engine}.json"
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
