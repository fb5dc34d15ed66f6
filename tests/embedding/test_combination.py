"""Vectors of several texts."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dare_core.embedding.combination import combined
from dare_core.embedding.encoder import Encoder
from dare_core.errors import InputError
from dare_core.schemas import KNOWLEDGE_EMBEDDING

HEIST = "A tense heist film with a sharp crew of thieves."
PUPPY = "A gentle cartoon about a lost puppy."


def matrix(array: pa.FixedSizeListArray) -> np.ndarray:
    return array.flatten().to_numpy().reshape(len(array), -1)


def test_one_part_keeps_its_vector_to_the_bit(encoder: Encoder) -> None:
    assert combined(encoder, [(HEIST,), (PUPPY,), (HEIST,)]).equals(encoder.encode([HEIST, PUPPY, HEIST]))


def test_several_parts_count_the_same_and_the_vector_has_length_one(encoder: Encoder) -> None:
    heist, puppy = matrix(encoder.encode([HEIST, PUPPY * 40]))
    [made] = matrix(combined(encoder, [(PUPPY * 40, HEIST)]))
    np.testing.assert_allclose(made @ heist, made @ puppy, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made), 1, atol=1e-6)
    np.testing.assert_allclose(made, (heist + puppy) / np.linalg.norm(heist + puppy), atol=1e-6)


def test_a_long_part_leaves_the_other_its_half(encoder: Encoder) -> None:
    """In one text the encoder would read 256 word pieces of the long part and nothing of the other."""
    long = "film " * 400
    alone, written_after = matrix(encoder.encode([long, long + HEIST]))
    np.testing.assert_allclose(alone, written_after, atol=1e-5)
    [made] = matrix(combined(encoder, [(long, HEIST)]))
    assert made @ matrix(encoder.encode([HEIST]))[0] > alone @ matrix(encoder.encode([HEIST]))[0] + 0.2


def test_no_passages_make_no_vectors_of_the_stored_type(encoder: Encoder) -> None:
    array = combined(encoder, [])
    assert len(array) == 0
    assert array.type == KNOWLEDGE_EMBEDDING.field("embedding").type


def test_a_passage_without_a_part_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="passage 1 has no text to embed"):
        combined(encoder, [(HEIST,), ()])


class _Opposite:
    """An encoder's model: "east" and "west" point away from each other."""

    device = SimpleNamespace(type="cpu")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_embedding_dimension(self) -> int:
        return 2

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        self.asked += texts
        return np.array([[1, 0] if text == "east" else [-1, 0] for text in texts], np.float32)


def test_every_text_is_embedded_once_and_parts_that_cancel_out_leave_the_last() -> None:
    model = _Opposite()
    array = combined(Encoder("opposite", model), [("east", "west"), ("west", "east"), ("west",)])  # type: ignore[arg-type]
    assert matrix(array).tolist() == [[-1, 0], [1, 0], [-1, 0]]
    assert model.asked == ["east", "west"]
