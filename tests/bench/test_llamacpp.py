"""What llama.cpp is given; its server itself is not started here."""

from pathlib import Path

import numpy as np

from bench.llamacpp import write_lookup


def entries(file: Path) -> dict[tuple[int, ...], dict[int, int]]:
    """As llama.cpp reads them: four tokens of a key, how many follow it, and each with its count."""
    numbers, found = np.frombuffer(file.read_bytes(), np.int32).tolist(), {}
    while numbers:
        key, count = tuple(numbers[:4]), numbers[4]
        found[key] = dict(zip(numbers[5 : 5 + 2 * count : 2], numbers[6 : 6 + 2 * count : 2], strict=True))
        numbers = numbers[5 + 2 * count :]
    return found


def test_a_lookup_counts_what_follows_each_ngram_of_the_texts(tmp_path: Path) -> None:
    folder = write_lookup([[1, 2, 3], [1, 2, 4], [1, 2, 4]], tmp_path / "lookup")
    texts, corpus = entries(folder / "texts.bin"), entries(folder / "corpus.bin")
    assert texts == {(1, -1, -1, -1): {2: 3}, (2, -1, -1, -1): {3: 1, 4: 2}, (1, 2, -1, -1): {3: 1, 4: 2}}
    assert corpus == {(1, 2, -1, -1): {3: 1, 4: 2}}
