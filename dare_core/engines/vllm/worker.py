"""What the server may ask of vLLM's workers (``worker_extension_cls``), over ``collective_rpc``."""

from collections.abc import Sequence
from typing import Any


class DareWorker:
    """Methods mixed into vLLM's worker, in whichever process that runs."""

    model_runner: Any

    def dare_begin(self, job: dict[str, Any]) -> None:
        """See :meth:`dare_core.engines.vllm.proposer.PoolProposer.begin`."""
        self.model_runner.drafter.begin(job)

    def dare_measure(self, drafted: int) -> None:
        """See :meth:`dare_core.engines.vllm.proposer.PoolProposer.measure`."""
        self.model_runner.drafter.measure(drafted)

    def dare_measured(self) -> dict[int, dict[int, float]]:
        """See :meth:`dare_core.engines.vllm.proposer.PoolProposer.measured`."""
        seconds: dict[int, dict[int, float]] = self.model_runner.drafter.measured()
        return seconds

    def dare_take(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """See :meth:`dare_core.engines.vllm.proposer.PoolProposer.take`."""
        taken: list[dict[str, Any]] = self.model_runner.drafter.take(ids)
        return taken
