"""Who takes part in ``dare bench decode``: every contender writes the same prompts, so many at once.

A contender is a function of the batch size. All use all cores, decode greedily, and end texts at the same tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench import llamacpp
from bench.decode_prompts import OnProgress, Plan
from bench.ours import KINDS, STORAGES, OurEngines, timed
from bench.vllm_client import VENV, Speculation, VllmPeer, has_suffix_decoding, serving_vllm
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.plain import Run, generate_continuously, generate_plainly
from dare_core.errors import InputError
from dare_core.storage.processors import processors

if TYPE_CHECKING:
    from dare_core.decoding import Engine, Request
    from dare_core.models import LanguageModel

Contender = Callable[[int], Run]

#: The reduced precision of transformers and vLLM, measured where the processor computes in it.
_REDUCED: Final = "bfloat16"
#: Precision, kind; every one may be drafted or not.
OURS: Final = tuple(f"{precision}_{kind}" for precision in STORAGES for kind in KINDS[:3])
COLD: Final = "fp32_cold"
_TRANSFORMERS: Final = ("generate", "prompt_lookup", "generate_batch", "bf16_generate")
_VLLM: Final[dict[str, tuple[str, Speculation]]] = {
    "vllm": ("float32", "none"),
    "vllm_ngram": ("float32", "ngram"),
    "vllm_suffix": ("float32", "suffix"),
    "bf16_vllm": (_REDUCED, "none"),
    "bf16_vllm_suffix": (_REDUCED, "suffix"),
}
#: GGUF type, and whether drafts are looked up.
_LLAMACPP: Final = {
    "llamacpp_f32": ("F32", False),
    "llamacpp_q8": ("Q8_0", False),
    "llamacpp_f32_lookup": ("F32", True),
    "llamacpp_q8_lookup": ("Q8_0", True),
}
PEERS: Final = (*_TRANSFORMERS, *_VLLM, *_LLAMACPP)
#: What is measured besides; see :mod:`bench.shared_machine` and :mod:`bench.record`.
SHARED_MACHINE: Final = "shared_machine"
RECORD: Final = "record"
NAMES: Final = (*OURS, COLD, *PEERS, SHARED_MACHINE, RECORD)

#: Measured where they are asked for by name: slower than what stands beside them.
_ON_REQUEST: Final = ("generate_batch", "bf16_generate")
#: Measured in the first repeat alone: they take longest and are far from the fastest.
ONCE: Final = _TRANSFORMERS

#: The default batch size of a run, at which the machine is shared and the pool is missing.
FULL: Final = 16
#: Contenders that are measured at some batch sizes alone. Prompt lookup takes one sequence; llama.cpp's keeps a copy of
#: what it looks up for each; transformers' continuous batching takes all prompts at once.
_SIZES: Final = {
    COLD: (FULL,),
    "prompt_lookup": (1,),
    "generate_batch": (FULL,),
    "llamacpp_f32_lookup": (1,),
    "llamacpp_q8_lookup": (1,),
}


def chosen(plan: Plan) -> tuple[str, ...]:
    """The plan's contenders, or all but those that are measured on request.

    Raises:
        InputError: there is none of a name.
    """
    if unknown := sorted(set(plan.contenders) - set(NAMES)):
        raise InputError(f"no contender is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return plan.contenders or tuple(name for name in NAMES if name not in _ON_REQUEST)


class Contenders:
    """Models, pool and running peers, and what the engine's runs left to be reported.

    Attributes:
        versions: of the peers' software, of those that run.
        last: of each of our contenders, the engine of its last run.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        asked: "Sequence[Request]",
        ours: OurEngines,
        pool_texts: Sequence[list[int]],
        on_progress: OnProgress,
    ) -> None:
        self._settings, self._plan, self._asked, self._ours = settings, plan, asked, ours
        self._pool_texts, self._on_progress = pool_texts, on_progress
        self._longest = max(len(request.prompt_token_ids) + request.max_new_tokens for request in asked)
        self._plain: dict[str, LanguageModel] = {}
        self.versions: dict[str, str] = {}
        self.last: dict[str, Engine] = {}

    def start(self, peers: ExitStack) -> dict[str, Callable[[], Run]]:
        """Those of the plan that can be run here, by name and batch size (``fp32_relaxed_b16``); starts vLLM's.

        What cannot is said to be missing.
        """
        started: dict[str, Callable[[], Run]] = {}
        for name in chosen(self._plan):
            sizes = [size for size in self._plan.batch_sizes if size in _SIZES.get(name, (size,))]
            if sizes and (contender := self._contender(name, peers)):
                started |= {f"{name}_b{size}": partial(contender, size) for size in sizes}
        return started

    def at(self, size: int) -> "Sequence[Request]":
        """The requests of one batch size."""
        return self._asked[: self._plan.prompts_at(size)]

    def plain(self, dtype: str = "float32") -> "LanguageModel":
        """A model that no engine has taken over."""
        if dtype not in self._plain:
            self._plain[dtype] = models.load_model(self._settings.model_copy(update={"dtype": dtype}))
        return self._plain[dtype]

    def _contender(self, name: str, peers: ExitStack) -> Contender | None:
        reduced = name.startswith("bf16_") and name in PEERS
        reason: str | None = None
        if reduced and not _computes_reduced():
            reason = f"this processor only emulates {_REDUCED}"
        elif name in _VLLM:
            reason = _missing_vllm(_VLLM[name][1])
        elif name in _LLAMACPP:
            reason = llamacpp.missing(self._settings)
        if reason:
            self._on_progress(f"{name} will be missing: {reason}")
            return None
        if name in (*OURS, COLD):
            return partial(self._write, name)
        if name in _VLLM:
            return self._vllm(name, peers)
        if name in _LLAMACPP:
            return self._llamacpp(name)
        if name in _TRANSFORMERS:
            return partial(self._transformers, name)
        return None

    def _write(self, name: str, size: int) -> Run:
        engine = self.last[f"{name}_b{size}"] = self._ours.open(name, size)
        return timed(engine, self.at(size))

    def _transformers(self, name: str, size: int) -> Run:
        plain, new = self.plain(_REDUCED if name.startswith("bf16_") else "float32"), self._plan.max_new_tokens
        prompts = self._prompts(size)
        if name == "generate_batch":
            return generate_continuously(plain, prompts[:size], new)
        plain.model.set_attn_implementation("sdpa")
        options: dict[str, Any] = {"prompt_lookup_num_tokens": 10} if name == "prompt_lookup" else {}
        return generate_plainly(plain, prompts, new, size, **options)

    def _vllm(self, name: str, peers: ExitStack) -> Contender:
        dtype, speculation = _VLLM[name]
        self._on_progress(f"starting {name}")
        log = self._settings.data_dir / "bench" / f"{name}.log"
        most = max(self._plan.batch_sizes)
        serving = serving_vllm(self._settings, dtype, self._longest, most, log, speculation)
        peer: VllmPeer = peers.enter_context(serving)
        self.versions["vllm"] = peer.version
        if speculation == "suffix":
            peer.tell(self._pool_texts)
        return lambda size: peer.write(self._prompts(size), self._plan.max_new_tokens, size)

    def _llamacpp(self, name: str) -> Contender:
        kind, looks_up = _LLAMACPP[name]
        folder = self._settings.data_dir / "bench"
        lookup = llamacpp.write_lookup(self._pool_texts, folder / "llamacpp" / "lookup") if looks_up else None
        weights = llamacpp.weights(self._settings, kind)
        peer = llamacpp.LlamaCpp(weights, self._longest, processors(), folder / f"{name}.log", lookup)
        self.versions["llama.cpp"] = llamacpp.version()
        return lambda size: peer.write(self._prompts(size), self._plan.max_new_tokens, size)

    def _prompts(self, size: int) -> list[Sequence[int]]:
        return [request.prompt_token_ids for request in self.at(size)]


def _missing_vllm(speculation: Speculation) -> str | None:
    if not VENV.exists():
        return "vLLM is not installed (make vllm-env)"
    if speculation == "suffix" and not has_suffix_decoding():
        return "Arctic Inference is not installed beside vLLM (make bench-arctic)"
    return None


def _computes_reduced() -> bool:
    """Whether the processor multiplies matrices in bfloat16; emulated it takes minutes a text."""
    import torch

    from dare_core.decoding.weights import PackedLinear

    try:
        PackedLinear(torch.nn.Linear(16, 16, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True
