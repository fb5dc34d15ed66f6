import numpy as np

from dare_core.decoding.looping import is_looping


def test_looping_is_seen_when_the_last_tokens_stood_there_before() -> None:
    assert not is_looping(np.arange(40, dtype=np.int32))
    assert not is_looping(np.array([1, 2, 3] * 2, np.int32))
    assert is_looping(np.array(list(range(20)) * 2, np.int32))
    assert is_looping(np.array([7] * 10, np.int32))
