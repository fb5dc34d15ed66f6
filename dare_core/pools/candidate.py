"""Versions that are built and wait to be put in force."""

from dare_core.pools.manifest import PoolManifest
from dare_core.pools.register import Register, published_meanwhile


class CandidateRegister:
    """A :class:`~dare_core.pools.register.Register` for a store that builds without publishing.

    What is published through it is in force for this object alone; ``register.publish`` puts it in force for all.

    Args:
        register: says what is in force. Pins go to it.
    """

    def __init__(self, register: Register) -> None:
        self._register = register
        self._candidate: str | None = None
        self.drop, self.pins, self.pin, self.unpin = register.drop, register.pins, register.pin, register.unpin

    def versions(self) -> list[str]:
        """See :class:`Register`."""
        versions = self._register.versions()
        if self._candidate is None:
            return versions
        return [self._candidate, *(version for version in versions if version != self._candidate)]

    def publish(self, manifest: PoolManifest, expected: str | None) -> None:
        """See :class:`Register`."""
        versions = self.versions()
        current = versions[0] if versions else None
        if current != expected:
            raise published_meanwhile(manifest.version, expected, current)
        self._candidate = manifest.version
