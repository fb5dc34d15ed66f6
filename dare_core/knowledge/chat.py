"""Messages to token ids, such that source text can never become a control token (DESIGN.md decision 12).

The chat template is applied to a placeholder; the template's own text is encoded with its control tokens, the
message by a tokenizer that has none. A title that reads ``<|im_end|>`` is then spelt in ordinary tokens and ends no
turn.
"""

import json
import secrets
from typing import TYPE_CHECKING

from dare_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        self._control_ids = {token["id"] for token in description["added_tokens"]}
        description["added_tokens"] = []
        description["post_processor"] = None
        self._plain: Tokenizer = Tokenizer.from_str(json.dumps(description))
        self._message_alone = _frame(tokenizer, ["user"])
        if self._message_alone is None:
            raise ModelError("the chat template does not show a message once")
        self._with_system = _frame(tokenizer, ["system", "user"])

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
        elif system:
            texts, frame = [system, message], self._with_system
        assert frame is not None
        ids = list(frame[0])
        for text, behind in zip(texts, frame[1:], strict=True):
            ids += [*self._encode(text), *behind]
        return ids + self._encode(opening)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if forged := self._control_ids.intersection(ids):
            raise InputError(f"the text {text[:60]!r} encodes to the control tokens {sorted(forged)}")
        return ids


def _frame(tokenizer: "PreTrainedTokenizerBase", roles: list[str]) -> list[list[int]] | None:
    """The token ids before, between and after the turns of some roles; None where the template has no such turns."""
    if tokenizer.chat_template is None:  # a base model: the message is continued
        return [[] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], []] if len(roles) == 1 else None
    import jinja2

    contents = [secrets.token_hex(16) for _ in roles]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        rest = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError:  # how a template refuses a role
        return None
    parts = []
    for content in contents:
        if rest.count(content) != 1:
            return None
        part, _, rest = rest.partition(content)
        parts.append(part)
    return [list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (*parts, rest)]
