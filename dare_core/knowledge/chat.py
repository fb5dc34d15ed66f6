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
        self._before, self._after = self._frame(tokenizer)

    def _frame(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
        """The token ids before and after the message."""
        if tokenizer.chat_template is None:  # a base model: the message is continued
            return ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]), []
        placeholder = secrets.token_hex(16)
        messages = [{"role": "user", "content": placeholder}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = str(rendered).split(placeholder)
        if len(parts) != 2:
            raise ModelError(f"the chat template shows a message {len(parts) - 1} times; it must show it once")
        before, after = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
        return before, after

    def encode(self, message: str) -> list[int]:
        """Token ids of the prompt that asks ``message`` and waits for the answer.

        Raises:
            InputError: the tokenizer makes a control token of plain text even so; nothing of the sort is let through.
        """
        ids: list[int] = self._plain.encode(message, add_special_tokens=False).ids
        if forged := self._control_ids.intersection(ids):
            raise InputError(f"the text {message[:60]!r} encodes to the control tokens {sorted(forged)}")
        return [*self._before, *ids, *self._after]
