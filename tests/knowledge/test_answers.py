"""Answers of frameworks that ask for JSON: what is read, what is refused, and which tokens are held to."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from dare_core.knowledge.answers import AnswerError, answer_form, read_answers, structural_token_ids
from dare_core.schemas import KNOWLEDGE, QUARANTINE

PROFILE = answer_form("rlmrec", "item")
INTERESTS = answer_form("once", "user")
assert PROFILE is not None
assert INTERESTS is not None


@pytest.mark.parametrize(
    ("written", "cut", "content"),
    [
        ('Fans of heists.", "reasoning": "It is one."}', False, "Fans of heists."),
        ('Say \\"hi\\" \\u00e9", "reasoning": "x"}\nI hope this helps', False, 'Say "hi" é'),
        ("Fans of hei", True, "Fans of hei"),
        ('Fans.", "reason', True, "Fans."),
        ('Fans.", ', True, "Fans."),
        ('Fans.", "reasoning":', True, "Fans."),
        ('Fans.", "reasoning": "It', True, "Fans."),
        ("Fans\\", True, "Fans"),
        ("Fans \\u00", True, "Fans"),
    ],
)
def test_a_profile_is_its_summarization(written: str, cut: bool, content: str) -> None:
    assert PROFILE.content(written, cut) == content


@pytest.mark.parametrize(
    ("written", "cut", "content"),
    [
        ('crime", "noir"], "regions": ["US"]}', False, "Topics of interest: crime, noir. Regions of interest: US."),
        ('crime"], "regions": []}', False, "Topics of interest: crime."),
        ('crime", "no', True, "Topics of interest: crime, no."),
        ('crime", ', True, "Topics of interest: crime."),
        ('crime"], "regions": ["Fr', True, "Topics of interest: crime. Regions of interest: Fr."),
    ],
)  # fmt: skip
def test_interests_are_told_in_sentences(written: str, cut: bool, content: str) -> None:
    assert INTERESTS.content(written, cut) == content


@pytest.mark.parametrize(
    ("written", "cut", "rule", "reason"),
    [
        ("Fans of heists", False, "not_json", "Unterminated string"),
        ('Fans." and more', False, "not_json", "delimiter"),
        ('Fans." and more', True, "not_json", "cut off by the token limit"),
        ("two\nlines", True, "not_json", "control character"),
        ('Fans."}', False, "wrong_form", "no key 'reasoning'"),
        ('Fans."} and then on and on', True, "wrong_form", "no key 'reasoning'"),
        ('Fans.", "reasoning": 7}', False, "wrong_form", "'reasoning' is not a string: 7"),
        (' ", "reasoning": "x"}', False, "wrong_form", "'summarization' is empty"),
        ('\\ud800 x", "reasoning": "x"}', False, "wrong_form", "surrogate"),
        ('\\u0000 x", "reasoning": "x"}', False, "wrong_form", "NUL"),
    ],
)
def test_another_form_is_refused_with_the_reason(written: str, cut: bool, rule: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason) as refused:
        PROFILE.content(written, cut)
    assert refused.value.rule == rule


def staged(kinds: list[str], texts: list[str]) -> pa.Table:
    constant = {pa.string(): "x", pa.int32(): 1, pa.float64(): 0.5, pa.list_(pa.int32()): [1, 2]}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    values = {field.name: [constant.get(field.type, now)] * len(texts) for field in KNOWLEDGE}
    values |= {"request_id": [f"r{n}" for n in range(len(texts))], "kind": kinds, "text": texts}
    return pa.table(values | {"finish_reason": ["stop"] * len(texts)}, schema=KNOWLEDGE)


def test_every_answer_is_read_or_refused_whole() -> None:
    table = staged(["item", "item", "user"], ["A.", 'A.", "reasoning": "b"}', 'B.", "reasoning": "c"}'])
    read, refused = read_answers("rlmrec", table)
    assert read.schema == KNOWLEDGE
    assert read.select(["request_id", "text"]).to_pylist() == [
        {"request_id": "r1", "text": "A."},
        {"request_id": "r2", "text": "B."},
    ]
    assert len(set(read["text_hash"].to_pylist())) == 2
    assert read["token_ids"].to_pylist() == [[1, 2], [1, 2]]
    assert refused.schema == QUARANTINE
    [row] = refused.to_pylist()
    assert (row["request_id"], row["rule"], row["text"]) == ("r0", "not_json", '{"summarization": "A.')
    assert "Unterminated string" in row["value"]


def test_prose_is_left_as_it_is_and_only_users_of_once_answer_in_json() -> None:
    table = staged(["item", "user"], ["A film.", 'crime"], "regions": []}'])
    assert read_answers("kar", table).read is table
    assert read_answers("once", table).read["text"].to_pylist() == ["A film.", "Topics of interest: crime."]


def test_structural_tokens_are_those_that_json_and_its_keys_are_made_of(tokenizer: PreTrainedTokenizerBase) -> None:
    structural = structural_token_ids(tokenizer, PROFILE)
    vocabulary = tokenizer.get_vocab()
    for token in ('"', '":', "{", '"}', "Ċ", ",", "[", "]", "\\"):
        assert vocabulary[token] in structural
    assert not {vocabulary[token] for token in ("Ġmovie", "Ġthe", ".", "Ġ-")} & structural
    answer = '{"summarization": "", "reasoning": ""}'
    assert structural.issuperset(tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert len(structural) < len(tokenizer) / 10
