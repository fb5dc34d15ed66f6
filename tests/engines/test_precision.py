"""Which precision settings mean, and settings that mean one."""

import pytest

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.decoding import kernels
from dare_core.engines import load_engines
from dare_core.engines.precision import precision_of, settings_at, storage_of, writes_int8
from dare_core.errors import ModelError, SettingError


def of(**changes: object) -> Settings:
    return Settings(**({"device": "cpu"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "fp32"),
        ({"dtype": "bfloat16", "device": "cuda"}, "bf16"),
        ({"dtype": "float16"}, "fp16"),
        ({"weights": "bfloat16"}, "bf16"),
        ({"weights": "int8"}, "int8"),
        ({"weights": "auto"}, "fp32"),
        ({"weights": "auto", "dtype": "bfloat16"}, "bf16"),
        ({"engine": "vllm", "dtype": "bfloat16"}, "bf16"),
        ({"engine": "vllm", "dtype": "bfloat16", "quantization": "fp8"}, "bf16+fp8"),
        ({"quantization": "fp8"}, "fp32"),
        ({"engine": "endpoint", "endpoint_url": "http://localhost/v1", "dtype": "bfloat16"}, "endpoint"),
        ({"engine": "endpoint", "endpoint_url": "http://localhost/v1", "weights": "auto"}, "endpoint"),
    ],
)
def test_settings_mean_one_precision(changes: dict[str, object], precision: str) -> None:
    assert precision_of(of(**changes)) == precision
    assert precision_of(settings_at(of(**changes), precision)) == precision


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cuda:1"}, r"DARE_WEIGHTS=int8 is for CPUs, and the device is cuda:1 .*; set DARE_WEIGHTS=model"),
        ({"dtype": "bfloat16"}, "DARE_WEIGHTS=int8 needs DARE_DTYPE=float32, not bfloat16"),
        ({"compile_layers": True}, "DARE_COMPILE_LAYERS"),
        ({"engine": "vllm"}, "vLLM has DARE_QUANTIZATION"),
        ({"engine": "endpoint", "endpoint_url": "http://localhost/v1"}, "a server decides for itself"),
    ],
)
def test_narrow_weights_that_cannot_be_had_are_refused_before_anything_is_loaded(
    changes: dict[str, object], said: str
) -> None:
    settings = of(weights="int8", **changes)
    with pytest.raises(SettingError, match=said):
        precision_of(settings)
    with pytest.raises(SettingError, match=said):
        load_engines(settings)
    assert not writes_int8(settings)


def test_a_device_that_is_not_named_is_this_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "torch_device", lambda name: "cuda" if name == "auto" else name)
    with pytest.raises(SettingError, match=r"the device is cuda \(DARE_DEVICE=auto\)"):
        precision_of(of(weights="int8", device="auto"))
    assert precision_of(of(weights="auto", device="auto"), int8_passed=True) == "fp32"
    assert precision_of(of(weights="auto"), int8_passed=True) == "int8"


@pytest.mark.parametrize("own", [{}, {"weights": "int8"}, {"weights": "auto"}, {"dtype": "float16"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_what_was_planned_is_written_whatever_the_settings_say(own: dict[str, object], precision: str) -> None:
    at = settings_at(of(**own), precision)
    assert precision_of(at) == precision
    assert at.weights == storage_of(at) != "auto"


def test_a_planned_precision_takes_the_form_that_the_device_is_fast_in() -> None:
    assert settings_at(of(), "bf16").weights == "bfloat16"
    assert settings_at(of(device="cuda"), "bf16").dtype == "bfloat16"
    assert settings_at(of(dtype="bfloat16"), "bf16").dtype == "bfloat16"
    vllm = settings_at(of(engine="vllm", quantization="awq"), "bf16+fp8")
    assert (vllm.dtype, vllm.quantization) == ("bfloat16", "fp8")
    assert settings_at(of(engine="vllm", quantization="awq"), "fp32").quantization is None


@pytest.mark.parametrize(
    ("own", "precision", "said"),
    [
        ({"device": "cuda"}, "int8", "int8 is for CPUs, and the device is cuda"),
        ({"compile_layers": True}, "int8", "int8 needs our kernels"),
        ({"engine": "vllm"}, "int8", "vLLM does not write in int8"),
        ({}, "bf16+fp8", r"our engine does not write in bf16\+fp8"),
        ({}, "fp64", "our engine does not write in fp64"),
    ],
)
def test_a_planned_precision_that_cannot_be_had_is_refused(own: dict[str, object], precision: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        settings_at(of(**own), precision)


def test_without_kernels_nothing_is_written_that_would_only_be_called_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    with pytest.raises(ModelError, match="int8 weights need our kernels"):
        load_engines(of(weights="int8"))
    assert not writes_int8(of())


def test_a_server_must_be_named_and_writes_in_no_precision_of_ours() -> None:
    with pytest.raises(SettingError, match="DARE_ENGINE=endpoint needs DARE_ENDPOINT_URL"):
        load_engines(of(engine="endpoint"))
    with pytest.raises(ModelError, match="not in int8"):
        settings_at(of(engine="endpoint", endpoint_url="http://localhost/v1"), "int8")
    with pytest.raises(ModelError, match="does not write in endpoint"):
        settings_at(of(), "endpoint")
