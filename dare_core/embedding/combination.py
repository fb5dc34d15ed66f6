"""One vector of several texts: the mean of their vectors."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dare_core.embedding.encoder import Encoder
from dare_core.errors import InputError


def combined(encoder: Encoder, parts: Sequence[tuple[str, ...]]) -> pa.FixedSizeListArray:
    """Embed passages of several parts: each part by itself, then the mean of their vectors, of length 1 again.

    So every part counts the same, whatever its length. Of one part it is the part's own vector, to the bit. A text that
    several passages have is embedded once.

    Args:
        encoder: makes the parts' vectors.
        parts: of each passage, one at least.

    Returns:
        float32, one vector of length 1 per passage, in input order.

    Raises:
        InputError: a passage has no part.
        ModelError: see :meth:`Encoder.encode`.
    """
    if empty := [number for number, of_one in enumerate(parts) if not of_one]:
        raise InputError(f"passage {empty[0]} has no text to embed")
    places = {text: place for place, text in enumerate(dict.fromkeys(text for of_one in parts for text in of_one))}
    encoded = encoder.encode(list(places))
    width = encoded.type.list_size
    vectors = encoded.flatten().to_numpy().reshape(len(places), width)
    made = np.empty((len(parts), width), np.float32)
    for row, of_one in enumerate(parts):
        made[row] = vectors[places[of_one[-1]]]
        if len(of_one) > 1:
            total = vectors[[places[text] for text in of_one]].sum(axis=0, dtype=np.float64)
            if length := np.linalg.norm(total):  # else they cancel out, and the last part stands for all
                made[row] = total / length
    return pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), width)
