"""Answers that have a form: read strictly, with a reason for each that cannot be read.

A small model seldom gets a form right by itself, so the prompt begins the answer (``opening``) and the model continues.
What is embedded and loaded is the content of an answer; its ``token_ids`` stay as they were written.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from dare_core.config.domains import Framework
from dare_core.schemas import KNOWLEDGE, QUARANTINE, Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters that JSON is laid out with, inside strings too. Beside them: controls.
_STRUCTURE: Final = frozenset('{}[]":,\\')


class AnswerError(ValueError):
    """An answer has not the form that was asked for. ``rule`` is the name that quarantine stores."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


@dataclass(frozen=True)
class JsonForm:
    """An answer of one JSON object.

    Attributes:
        opening: how every answer begins; part of the prompt.
        keys: that the object must have, in the order they are asked for.
        lists: the values are lists of strings; else strings. The first key's may not be empty.
        wording: makes the text, of the keys that are named, in their order; a key with nothing in it is left out.
    """

    opening: str
    keys: tuple[str, ...]
    lists: bool
    wording: Mapping[str, str]

    def content(self, continuation: str, cut: bool) -> str:
        """The text of an answer.

        Args:
            continuation: what the model wrote behind the opening. What follows the object is not read.
            cut: it was ended by the token limit. A value may then lack its end, and keys after it may be missing.

        Raises:
            AnswerError: ``not_json``, or ``wrong_form``: a key is missing or its value is none of the kind.
        """
        answer = self.opening + continuation
        closed = False
        try:
            found, _ = _DECODER.raw_decode(answer)
        except (json.JSONDecodeError, RecursionError) as error:
            found, closed = _close(answer) if cut else None, True
            if found is None:
                raise AnswerError("not_json", f"{error}" + (", cut off by the token limit" if cut else "")) from None
        values = {key: self._value(found, key, closed and key != self.keys[0]) for key in self.keys}
        text = " ".join(words.format(values[key]) for key, words in self.wording.items() if values[key])
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise AnswerError("wrong_form", "an escape is half of a surrogate pair")
        if "\0" in text:
            raise AnswerError("wrong_form", "an escape is the character NUL, which cannot be stored")
        return text

    def continuation(self, answer: str) -> str:
        """What an answer that was not begun says behind the opening; one that begins otherwise as it is."""
        marks = r"\s*".join(re.escape(mark) for mark in re.findall(r'"[^"]+"|\S', self.opening))
        begun = re.match(rf"\s*(```\w*\s*)?{marks}", answer)
        return answer[begun.end() :] if begun else answer

    def _value(self, found: dict[str, Any], key: str, may_lack: bool) -> str:
        if key not in found:
            if may_lack:
                return ""
            raise AnswerError("wrong_form", f"no key {key!r}")
        value = found[key]
        of_kind = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if not (of_kind if self.lists else isinstance(value, str)):
            wanted = "a list of strings" if self.lists else "a string"
            raise AnswerError("wrong_form", f"{key!r} is not {wanted}: {json.dumps(value, ensure_ascii=False)[:60]}")
        parts = [part.strip() for part in (value if self.lists else [value])]
        text = ", ".join(part for part in parts if part)
        if not text and key == self.keys[0]:
            raise AnswerError("wrong_form", f"{key!r} is empty")
        return text


_DECODER: Final = json.JSONDecoder()

_PROFILE: Final = JsonForm(
    '{"summarization": "', ("summarization", "reasoning"), lists=False, wording={"summarization": "{}"}
)
_INTERESTS: Final = JsonForm(
    '{"topics": ["',
    ("topics", "regions"),
    lists=True,
    wording={"topics": "Topics of interest: {}.", "regions": "Regions of interest: {}."},
)
_FORMS: Final[dict[tuple[Framework, Kind], JsonForm]] = {
    ("rlmrec", "item"): _PROFILE,
    ("rlmrec", "user"): _PROFILE,
    ("once", "user"): _INTERESTS,
}


def answer_form(framework: Framework, kind: Kind) -> JsonForm | None:
    """The form that a framework asks for; None where answers are prose."""
    return _FORMS.get((framework, kind))


def _close(answer: str) -> dict[str, Any] | None:
    """The object of an answer that the token limit cut off, up to the cut, or to the last comma where the cut leaves
    half a key; None where the answer was no object before."""
    closers: list[str] = []
    whole, closers_there = 0, list[str]()  # what stands before the last comma, and what is open there
    quoted = False
    at = 0
    while at < len(answer):
        character = answer[at]
        if quoted and character == "\\":
            width = 6 if answer[at + 1 : at + 2] == "u" else 2
            if at + width > len(answer):  # half of an escape
                answer = answer[:at]
            at += width
            continue
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "{[":
            closers.append("}" if character == "{" else "]")
        elif not quoted and character in "}]" and closers:
            closers.pop()
        elif not quoted and character == ",":
            whole, closers_there = at, closers.copy()
        at += 1
    candidates = (answer + '"' * quoted, closers), (answer[:whole], closers_there)
    for beginning, opened in candidates:
        try:
            found = json.loads(beginning + "".join(reversed(opened)))
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def structural_token_ids(tokenizer: "PreTrainedTokenizerBase", form: JsonForm) -> frozenset[int]:
    """Tokens that an answer's structure is made of: all with a character that JSON is laid out with, and those that
    spell the keys, wherever they stand."""
    skeleton = json.dumps(dict.fromkeys(form.keys, [""] if form.lists else ""))
    spelt = tokenizer(skeleton, add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    laid_out = (token for token, text in enumerate(texts) if any(c in _STRUCTURE or c < " " for c in text))
    return frozenset([*spelt, *laid_out])


class Answers(NamedTuple):
    """``read``: KNOWLEDGE rows whose text is the content; ``refused``: QUARANTINE rows of the others."""

    read: pa.Table
    refused: pa.Table


def read_answers(framework: Framework, staged: pa.Table) -> Answers:
    """Read staged answers (KNOWLEDGE rows); those that are prose stay as they are."""
    forms = {kind: answer_form(framework, kind) for kind in set(staged["kind"].to_pylist())}
    if not any(forms.values()):
        return Answers(staged, QUARANTINE.empty_table())
    kept, texts, refused = [], [], []
    names = ["kind", "text", "finish_reason", *(name for name in QUARANTINE.names if name in KNOWLEDGE.names)]
    for row in staged.select(list(dict.fromkeys(names))).to_pylist():
        form = forms[row["kind"]]
        try:
            texts.append(form.content(row["text"], row["finish_reason"] == "length") if form else row["text"])
            kept.append(True)
        except AnswerError as error:
            assert form is not None
            kept.append(False)
            refused.append(
                {
                    **{name: row[name] for name in QUARANTINE.names if name in row},
                    "rule": error.rule,
                    "value": str(error),
                    "text": form.opening + row["text"],
                    "quarantined_at": datetime.now(UTC),
                }
            )
    read = staged.filter(pa.array(kept, pa.bool_()))
    for name, values in (("text", texts), ("text_hash", [hashlib.sha256(t.encode()).hexdigest() for t in texts])):
        at = KNOWLEDGE.get_field_index(name)
        read = read.set_column(at, KNOWLEDGE.field(name), pa.array(values, pa.string()))
    return Answers(read, pa.Table.from_pylist(refused, QUARANTINE))
