"""Places that several machines share, for tests of what is done with them."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A place on a file system that is not the local one; it lives in this process."""
    name = tmp_path.name
    yield f"memory://{name}/shared"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)
