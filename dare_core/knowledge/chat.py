"""Messages to token ids, such that source text can never become a control token (DESIGN.md decision 12).

A prompt is encoded whole, as the tokenizer's own rendering is, and then looked at: it must hold the control tokens of
the chat template and no others. One that holds others is encoded in pieces: the template's own text with its control
tokens, the message by a tokenizer that has none. A title that reads ``<|im_end|>`` is then spelt in ordinary tokens and
ends no turn.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dare_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Frame:
    """A chat template's text around the turns of some roles.

    Attributes:
        begin: token ids before all text.
        parts: before, between and behind the turns.
        trim: what the template does to a turn's text.
    """

    begin: list[int]
    parts: list[str]
    trim: Callable[[str], str]


class ChatEncoder:
    """Encodes single user messages for one tokenizer.

    Raises:
        ModelError: the tokenizer is not backed by the ``tokenizers`` library, or its chat template alters messages.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer; a tokenizer.json is needed")
        description = json.loads(backend.to_str())
        description |= {"truncation": None, "padding": None, "post_processor": None}
        self._own: Tokenizer = Tokenizer.from_str(json.dumps(description))
        control = [
            token for token in description["added_tokens"] if _is_control(token, description["model"], tokenizer)
        ]
        self._control_ids = {token["id"] for token in control}
        self._part_ids: dict[str, list[int]] = {}
        self._control_texts = [token["content"] for token in control]
        description["added_tokens"] = [
            token for token in description["added_tokens"] if token["id"] not in self._control_ids
        ]
        self._plain: Tokenizer = Tokenizer.from_str(json.dumps(description))
        message_alone = _frame(tokenizer, ["user"])
        if message_alone is None:
            raise ModelError("the chat template does not show a message once")
        self._message_alone, self._with_system = message_alone, _frame(tokenizer, ["system", "user"])

    @property
    def control_texts(self) -> tuple[str, ...]:
        """What stands for a control token in text."""
        return tuple(self._control_texts)

    def encode(self, message: str, system: str = "", opening: str = "") -> list[int]:
        """Token ids of the prompt that asks ``message`` and waits for the answer, or for the rest of one.

        Args:
            message: the user's turn.
            system: the system's turn; of a chat template that knows none it begins the user's.
            opening: what the answer begins with.

        Raises:
            InputError: the tokenizer makes a control token of plain text even so; nothing of the sort is let through.
        """
        texts, frame = [message], self._message_alone
        if system and self._with_system is None:
            texts = [f"{system}\n\n{message}"]
        elif system and self._with_system is not None:
            texts, frame = [system, message], self._with_system
        texts = [frame.trim(text) for text in texts]
        ids = self._encode_whole(frame, texts, opening)
        return ids if ids is not None else self._encode_apart(frame, texts, opening)

    def _encode_whole(self, frame: _Frame, texts: list[str], opening: str) -> list[int] | None:
        """As the tokenizer's own rendering is encoded; None where a text would become a control token."""
        if any(control in text for text in (*texts, opening) for control in self._control_texts):
            return None
        whole = "".join(part + text for part, text in zip(frame.parts, [*texts, ""], strict=True))
        if frame.parts[-1]:  # else nothing tells the message from the answer
            whole, opening = whole + opening, ""
        ids: list[int] = self._own.encode(whole, add_special_tokens=False).ids
        ids += self._own.encode(opening, add_special_tokens=False).ids
        controls = [token for part in frame.parts for token in self._ids(part) if token in self._control_ids]
        return frame.begin + ids if controls == [token for token in ids if token in self._control_ids] else None

    def _encode_apart(self, frame: _Frame, texts: list[str], opening: str) -> list[int]:
        ids = list(frame.begin)
        for part, text in zip(frame.parts, [*texts, opening], strict=True):
            ids += self._ids(part)
            added: list[int] = self._plain.encode(text, add_special_tokens=False).ids
            if forged := self._control_ids.intersection(added):
                raise InputError(f"the text {text[:60]!r} encodes to the control tokens {sorted(forged)}")
            ids += added
        return ids

    def _ids(self, part: str) -> list[int]:
        """Of a piece of the template, control tokens and all."""
        if part not in self._part_ids:
            self._part_ids[part] = self._own.encode(part, add_special_tokens=False).ids
        return self._part_ids[part]


def _is_control(token: dict[str, Any], model: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether an added token is more than text: not runs of spaces, nor what stands for what the vocabulary lacks."""
    if token["content"] == model.get("unk_token") or token["id"] == model.get("unk_id"):
        return token["id"] in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return bool(token["special"] or token["content"].strip())


#: What templates do to a message's text, in the order in which they are tried.
_TRIMS: Final[tuple[Callable[[str], str], ...]] = (str, str.lstrip, str.rstrip, str.strip)


def _frame(tokenizer: "PreTrainedTokenizerBase", roles: list[str]) -> _Frame | None:
    """A template's text around the turns of some roles; None where it has no such turns."""
    if tokenizer.chat_template is None:  # a base model: the message is continued
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return _Frame(begin, ["", ""], str) if len(roles) == 1 else None
    import jinja2

    contents = [f" \n{secrets.token_hex(16)}\n " for _ in roles]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        rest = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError:  # how a template refuses a role
        return None
    if any(rest.count(content.strip()) != 1 for content in contents):
        return None
    trim = next((trim for trim in _TRIMS if all(trim(content) in rest for content in contents)), str.strip)
    parts = []
    for content in contents:
        part, _, rest = rest.partition(trim(content))
        parts.append(part)
    return _Frame([], [*parts, rest], trim)
