import json
from pathlib import Path
from typing import Any

import pytest

from dare_core import models
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import ModelError
from tests.support.tiny_model import save_tiny_model

CHANGING = {
    "bad_words_ids": [[5]],
    "begin_suppress_tokens": [3],
    "cache_implementation": "quantized",
    "constraints": [1],
    "dola_layers": "low",
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 1.2,
    "exponential_decay_length_penalty": [3, 1.1],
    "force_words_ids": [[4]],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "guidance_scale": 0,
    "max_time": 1.0,
    "min_length": 1,
    "min_new_tokens": 1,
    "no_repeat_ngram_size": 1,
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "remove_invalid_values": True,
    "repetition_penalty": 1.1,
    "sequence_bias": [[[4], 2.0]],
    "stop_strings": ["."],
    "suppress_tokens": [7],
    "token_healing": True,
    "watermarking_config": {"bias": 2.0},
    "of_a_later_release": 1,
}
NEUTRAL = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "length_penalty": 2.0,
    "max_length": 30,
    "max_new_tokens": 3,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "suppress_tokens": [],
    "stop_strings": None,
    "cache_implementation": "hybrid",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "output_attentions": False,
    "transformers_version": "4.38.0",
    "_from_model_config": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def asking(folder: Path, keys: dict[str, Any], **settings: Any) -> Settings:
    (folder / "generation_config.json").write_text(json.dumps(keys))
    return Settings(data_dir=folder, model=str(folder), **settings)


@pytest.mark.parametrize("key", CHANGING)
def test_a_key_that_changes_texts_is_refused_by_name_unless_told_to_ignore_it(folder: Path, key: str) -> None:
    settings = asking(folder, {"eos_token_id": 9, key: CHANGING[key]})
    with pytest.raises(ModelError, match=rf" asks for {key} .*DARE_IGNORE_GENERATION_CONFIG={key} "):
        models.model_facts(settings)
    facts = models.model_facts(settings.model_copy(update={"ignore_generation_config": (key,)}))
    assert facts.eos_token_ids == {9}


def test_all_keys_that_are_refused_are_named_at_once_and_none_of_those_ignored(folder: Path) -> None:
    settings = asking(folder, CHANGING, ignore_penalties=True, ignore_generation_config=("num_beams",))
    with pytest.raises(ModelError) as error:
        models.load_model(settings)
    named = str(error.value).partition("CONFIG=")[2].partition(" ")[0].split(",")
    penalties = {"repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "suppress_tokens"}
    assert named == sorted(set(CHANGING) - penalties - {"num_beams"})


def test_keys_that_change_nothing_under_greedy_decoding_are_accepted(folder: Path) -> None:
    assert models.model_facts(asking(folder, NEUTRAL | {"eos_token_id": [9, 8]})).eos_token_ids == {8, 9}


def test_an_older_model_that_asks_in_its_config_is_refused_too(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    assert models.model_facts(Settings(model=str(folder))).eos_token_ids == {config["eos_token_id"]}
    (folder / "config.json").write_text(json.dumps(config | {"min_length": 5}))
    with pytest.raises(ModelError, match="min_length"):
        models.model_facts(Settings(model=str(folder)))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named_and_not_taken_for_a_missing_one(folder: Path, text: str) -> None:
    settings = asking(folder, {})
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        models.model_facts(settings)


def test_what_is_ignored_is_ignored_by_plain_decoding_too(folder: Path) -> None:
    ignored = ("repetition_penalty", "num_beams")
    settings = asking(folder, {"repetition_penalty": 1.3, "num_beams": 2}, ignore_generation_config=ignored)
    generation = models.load_model(settings).model.generation_config
    assert generation.repetition_penalty is None and generation.num_beams is None


def test_the_keys_to_ignore_are_named_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_IGNORE_GENERATION_CONFIG", "bad_words_ids, num_beams")
    assert load_settings().ignore_generation_config == ("bad_words_ids", "num_beams")
