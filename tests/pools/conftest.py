"""Pools for tests."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder for what is read from object storage."""
    return tmp_path / "cache"
