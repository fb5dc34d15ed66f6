"""How many inputs each test here tries: a few in every run of the tests, many with ``DARE_FUZZ=full``."""

import os
from typing import Final

from hypothesis import HealthCheck, settings

_FULL: Final = os.environ.get("DARE_FUZZ") == "full"


def tries(few: int) -> settings:
    """Settings of a test that tries ``few`` inputs, or thirty times as many.

    The few are the same ones in every run, so that a change that breaks nothing fails nothing; the many are new each
    time. Fixtures are shared by a test's inputs.
    """
    return settings(
        max_examples=few * (30 if _FULL else 1),
        derandomize=not _FULL,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
