"""The precision that texts are written in: which one settings mean, and settings that mean it (DESIGN.md decision 11).

A precision is ``fp32``, ``bf16``, ``fp16`` or ``int8``. Of vLLM it is what ``dtype`` says and, where there is one, the
quantization's name: ``bf16+fp8``. A server at ``endpoint_url`` tells nobody: its texts are of the precision
``endpoint``, which keeps their requests apart from those of the other engines. Planning resolves a precision once; who
writes keeps to what was planned.
"""

from typing import TYPE_CHECKING, Final

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import ModelError, SettingError

if TYPE_CHECKING:
    from dare_core.decoding.weights import Storage

#: What texts were written in before precisions were told apart; requests of it have the ids that they had then.
FP32: Final = "fp32"
BF16: Final = "bf16"
INT8: Final = "int8"
ENDPOINT: Final = "endpoint"

_OF_DTYPE: Final = {"float32": FP32, "bfloat16": BF16, "float16": "fp16"}
_DTYPES: Final = {precision: dtype for dtype, precision in _OF_DTYPE.items()}
_OF_WEIGHTS: Final = {"bfloat16": BF16, "int8": INT8}


def precision_of(settings: Settings, int8_passed: bool = False) -> str:
    """The precision that settings mean on their device; ``device = "auto"`` is this machine's.

    Args:
        settings: engine, ``dtype``, ``weights``, ``quantization``, ``device``.
        int8_passed: an evaluation keeps int8 inside its bound; what ``weights = "auto"`` depends on.

    Raises:
        SettingError: ``weights`` names what cannot be had beside the others, or no ``endpoint_url`` is named.
    """
    of_dtype = _OF_DTYPE[settings.dtype]
    if settings.engine != "transformers" and settings.weights not in ("model", "auto"):
        instead = "vLLM has DARE_QUANTIZATION" if settings.engine == "vllm" else "a server decides for itself"
        raise SettingError(f"DARE_WEIGHTS={settings.weights} is for our own engine; {instead}")
    if settings.engine == "endpoint":
        if settings.endpoint_url is None:
            raise SettingError("DARE_ENGINE=endpoint needs DARE_ENDPOINT_URL, such as https://api.example.com/v1")
        return ENDPOINT
    if settings.engine == "vllm":
        return f"{of_dtype}+{settings.quantization}" if settings.quantization else of_dtype
    if settings.weights == "model":
        return of_dtype
    if settings.weights == "auto":
        return INT8 if int8_passed and narrow_problem(settings) is None else of_dtype
    if problem := narrow_problem(settings):
        raise SettingError(
            f"DARE_WEIGHTS={settings.weights} {problem}; set DARE_WEIGHTS=model, and DARE_DTYPE for a narrower model"
        )
    return _OF_WEIGHTS[settings.weights]


def settings_at(settings: Settings, precision: str) -> Settings:
    """``settings`` that write in ``precision``, whatever they say themselves.

    Raises:
        ModelError: their engine or device cannot write in it; says why.
    """
    dtype, _, quantization = precision.partition("+")
    if settings.engine == "endpoint":
        if precision != ENDPOINT:
            raise ModelError(f"a server at DARE_ENDPOINT_URL writes in a precision of its own, not in {precision}")
        return settings
    if settings.engine == "vllm":
        if dtype not in _DTYPES:
            raise ModelError(f"vLLM does not write in {precision}")
        return _changed(settings, _DTYPES[dtype], "model", quantization or None)
    if precision == INT8:
        at = _changed(settings, "float32", "int8")
        if problem := narrow_problem(at):
            raise ModelError(f"{precision} {problem}")
        return at
    if precision == BF16 and settings.dtype != "bfloat16":
        at = _changed(settings, "float32", "bfloat16")
        if narrow_problem(at) is None:
            return at
    if precision not in _DTYPES:
        raise ModelError(f"our engine does not write in {precision}")
    return _changed(settings, _DTYPES[precision], "model")


def model_precision(settings: Settings) -> str:
    """The precision of the model as ``dtype`` has it, whatever ``weights`` says."""
    return precision_of(settings.model_copy(update={"weights": "model"}))


def narrow_problem(settings: Settings) -> str | None:
    """Why our engine cannot narrow linear layers under these settings; None where it can, given its kernels."""
    if settings.dtype != "float32":
        return f"needs DARE_DTYPE=float32, not {settings.dtype}"
    if settings.compile_layers:
        return "needs our kernels, which DARE_COMPILE_LAYERS=true replaces"
    if (device := models.torch_device(settings.device)) != "cpu":
        return f"is for CPUs, and the device is {device} (DARE_DEVICE={settings.device})"
    return None


def writes_int8(settings: Settings) -> bool:
    """Whether our engine can write in int8 here, its kernels compiled."""
    return settings.engine == "transformers" and narrow_problem(settings) is None and has_kernels()


def has_kernels() -> bool:
    """Whether this machine has our kernels; they are compiled where they are not yet."""
    from dare_core.decoding import kernels

    return kernels.load() is not None


def storage_of(settings: Settings) -> "Storage":
    """How our engine is to store weights. ``auto`` that no plan resolved stores them as the model's."""
    return "model" if settings.weights == "auto" else settings.weights


def _changed(settings: Settings, dtype: str, weights: str, quantization: str | None = None) -> Settings:
    return settings.model_copy(update={"dtype": dtype, "weights": weights, "quantization": quantization})
