"""What the bench has done, kept in a file, so that a call goes on where an earlier one was stopped."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dare_core.storage.run_files import write_json


@dataclass
class Step:
    """One process's work: a stage, or something that the bench does between stages.

    Attributes:
        seconds: from the process's start to its end; those of tries that were stopped are added.
        own_seconds: of the function alone, without starting Python and importing, and of tries that were stopped.
        index_seconds: during which PostgreSQL was building an index of vectors.
        mb: the most private memory of one process, by kind; of the server, of all its processes together.
        result: what the function returned.
        ended: it is done; else it was stopped.
    """

    seconds: float = 0.0
    own_seconds: float = 0.0
    index_seconds: float = 0.0
    mb: dict[str, float] = field(default_factory=dict)
    result: Any = None
    ended: bool = False


class Steps:
    """The steps of one size, by name: ``<run>/<stage>/<number>``.

    Args:
        path: of the file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._steps = {name: Step(**step) for name, step in kept.items()}

    def __getitem__(self, name: str) -> Step:
        """What is known of a step: an empty one, where it was never begun."""
        return self._steps.get(name, Step())

    def keep(self, name: str, step: Step) -> None:
        """Write down a step, whether or not it has ended."""
        self._steps[name] = step
        write_json(self._path, json.dumps({name: asdict(step) for name, step in self._steps.items()}))

    def of(self, run: str) -> Mapping[str, Step]:
        """A run's steps by ``<stage>/<number>``, in their order."""
        return {name.partition("/")[2]: step for name, step in self._steps.items() if name.startswith(f"{run}/")}
