import json
from pathlib import Path

import pytest

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import ModelError
from tests.support.tiny_model import save_tiny_model


def test_a_model_that_asks_for_penalties_is_refused_unless_told_to_ignore_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_model(folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"repetition_penalty": 1.1}))
    settings = Settings(data_dir=tmp_path, model=str(folder))
    with pytest.raises(ModelError, match=r"repetition_penalty.*DARE_IGNORE_PENALTIES"):
        models.load_model(settings)
    assert models.load_model(settings.model_copy(update={"ignore_penalties": True})).eos_token_ids
