"""One tiny random model, and both engines over it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from dare_core.config.settings import load_settings
from dare_core.decoding import Engine, EngineConfig, Request, Result
from dare_core.engines.vllm.client import VllmEngine, VllmOptions, VllmServer
from dare_core.pools import Pool, PoolBuilder, PoolDrafter, PoolStore

#: No text holds this token; in a prompt it makes all logits NaN.
BROKEN = 97
VOCABULARY = 98
LENGTH = 160
SEQUENCES = 4


class AnyEngine(Protocol):
    """What both engines offer."""

    waiting: int
    busy: bool

    def generate(self, requests: Sequence[Request], on_tokens: Any = None) -> Iterator[Result]: ...

    def add(self, requests: Sequence[Request]) -> None: ...

    def step(self) -> list[Result]: ...


#: Opens an engine: the pool, its config, arguments of the drafter (None: no drafter).
Open = Callable[[Pool | None, EngineConfig, dict[str, Any] | None], AnyEngine]


@dataclass(frozen=True)
class Model:
    """The model, as transformers has it and as a folder."""

    folder: Path
    model: PreTrainedModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    folder.chmod(0o755)
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, eos_token_id=1, bos_token_id=2,
        pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[BROKEN] = float("nan")
        model.get_output_embeddings().weight[BROKEN] = 0
    model.save_pretrained(folder)
    return Model(folder, model)


@pytest.fixture(scope="session")
def vllm_server(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    python = load_settings().vllm_python
    if not python.exists():
        pytest.skip(f"vLLM's environment {python} is not installed (make vllm-env)")
    server = VllmServer(
        VllmOptions(
            python=python,
            model=str(tiny.folder),
            dtype="float32",
            max_length=LENGTH,
            max_sequences=SEQUENCES,
            log=tmp_path_factory.mktemp("vllm") / "vllm.log",
            compiled=load_settings().data_dir / "vllm" / "compiled",
            cache_bytes=1 << 28,
        )
    )
    yield server
    server.close()


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def open_engine(request: pytest.FixtureRequest, tiny: Model) -> Open:
    if request.param == "vllm":
        server = request.getfixturevalue("vllm_server")
        return lambda pool, config, drafter: VllmEngine(server, pool, config, drafter)

    def ours(pool: Pool | None, config: EngineConfig, drafter: dict[str, Any] | None) -> AnyEngine:
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
        return Engine(model, PoolDrafter(pool, **drafter) if drafter is not None else None, config)

    return ours


@pytest.fixture
def make_pool(tmp_path: Path) -> Callable[..., Pool]:
    """Builds, or with ``add`` adds to, a pool of texts by group."""

    def make(texts: dict[str, list[list[int]]], add: bool = False) -> Pool:
        rows = [{"group": group, "token_ids": text} for group, of_group in texts.items() for text in of_group]
        table = pa.Table.from_pylist(rows, pa.schema({"group": pa.string(), "token_ids": pa.list_(pa.int32())}))
        store = PoolStore(tmp_path / "pool")
        builder = PoolBuilder(store, "tiny", "hash", VOCABULARY)
        (builder.add if add else builder.build)(table)
        return Pool.open(store, "hash")

    return make


def prompts(n: int, seed: int = 5) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, BROKEN, random.integers(1, 30)).tolist() for _ in range(n)]
