import json
from pathlib import Path

from dare_core import models
from dare_core.config.settings import Settings
from tests.support.tiny_model import CONTEXT, save_tiny_model


def test_plans_count_with_the_length_that_the_engine_decodes(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for engine, length in (("transformers", 256), ("vllm", CONTEXT)):
        settings = Settings(data_dir=tmp_path, model=str(folder), engine=engine)
        assert models.prompt_format(settings).context_length == length
        assert models.model_facts(settings).context_length == length
