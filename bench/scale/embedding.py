"""How quickly the real encoder, which the bench's stages do without, makes vectors."""

import time
from typing import Final

from bench.scale.stand_ins import text_of
from dare_core.config.settings import Settings
from dare_core.embedding.combination import combined
from dare_core.embedding.encoder import Encoder
from dare_core.embedding.forms import HISTORY_BYTES

_VECTORS: Final = 64


def vectors_per_second(settings: Settings) -> float:
    """Vectors of a history and a text each, by the encoder of the settings on this machine, loading excluded."""
    encoder = Encoder.load(settings)
    texts = [text_of(str(number)) for number in range(2 * _VECTORS)]
    encoder.encode(texts[:1])  # the first one sets up threads
    started = time.perf_counter()
    combined(encoder, [(history[:HISTORY_BYTES], text) for history, text in zip(texts[::2], texts[1::2], strict=True)])
    return round(_VECTORS / (time.perf_counter() - started), 2)
